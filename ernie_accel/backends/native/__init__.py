"""The native CPU engine: packed weights and fused steps in C++ (csrc/), int8, int4, bf16 and fp32."""
