// Which instruction sets this processor (and its operating system) can run.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ernie {

// Ordered: a higher level includes all lower ones. Names are those of ERNIE_ACCEL_ISA.
enum class Isa { portable, avx2, avx512, avx512_vnni, avx512_bf16, amx };

const char* isa_name(Isa isa);

// Throws std::invalid_argument for a name that is not one of the levels.
Isa isa_from_name(std::string_view name);

// Levels that were compiled in and that the host can run, lowest first. Asks the system, once, to let this process use
// AMX's tile registers.
std::vector<Isa> supported_isas();

}  // namespace ernie
