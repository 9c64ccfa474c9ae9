version = "1.0.7"
enable_trt_backend = "OFF"
with_gpu = "OFF"
