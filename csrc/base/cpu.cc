#include "base/cpu.h"

#include <algorithm>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ernie {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

#if defined(__x86_64__)
// Tile registers are 8 KiB of state that Linux gives to a process on request only (arch_prctl, XFEATURE_XTILEDATA).
bool system_gives_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  static const bool given = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return given;
#else
  return false;
#endif
}

bool processor_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (~d & (kBf16 | kTile | kInt8)) == 0;
}
#endif

bool host_runs(Isa isa) {
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wide registers.
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return host_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512_vnni:
      return host_runs(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return host_runs(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return host_runs(Isa::avx512_bf16) && __builtin_cpu_supports("avx512vbmi") && processor_has_amx() &&
             system_gives_tiles();
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa isa_from_name(std::string_view name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) throw std::invalid_argument("unknown instruction set '" + std::string(name) + "'");
  return static_cast<Isa>(found - std::begin(kNames));
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx})
    if (host_runs(isa)) found.push_back(isa);
  return found;
}

}  // namespace ernie
