#include "store/client/copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace skate::store {
namespace {

#if defined(__x86_64__)
// Measured on EPYC (KVM), warm pages: 80 MiB 9.4 GB/s by memcpy, 15.5 by these; equal from 320 MiB on.
constexpr size_t kStreamFromBytes = 4 * 1024 * 1024;

constexpr size_t kBlockBytes = 128;
constexpr size_t kPageBytes = 4096;

__attribute__((target("avx2"))) inline void stream_block(uint8_t* to, const uint8_t* from) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
  const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 64));
  const __m256i d = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 96));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), a);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), b);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 64), c);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 96), d);
}

__attribute__((target("avx2"))) void stream_copy(uint8_t* to, const uint8_t* from, size_t bytes) {
  const size_t head = (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  const size_t blocks = bytes / kBlockBytes * kBlockBytes;
  // A load waits for an earlier store that agrees with it in the low 12 bits of the address (4K aliasing;
  // Intel optimization manual, "Memory disambiguation"; AMD's processors do so, too). Going down where the
  // destination lies ahead within a page, such stores come after the loads. Measured: 21 GB/s for 15.
  const size_t ahead = (reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from)) % kPageBytes;
  if (ahead < kPageBytes / 2) {
    for (size_t at = blocks; at != 0; at -= kBlockBytes)
      stream_block(to + at - kBlockBytes, from + at - kBlockBytes);
  } else {
    for (size_t at = 0; at != blocks; at += kBlockBytes) stream_block(to + at, from + at);
  }
  _mm_sfence();  // these stores are not ordered with the one that seals
  std::memcpy(to + blocks, from + blocks, bytes - blocks);
}

bool can_stream() {
  static const bool yes = __builtin_cpu_supports("avx2");
  return yes;
}
#endif

}  // namespace

void copy_in(void* destination, const void* source, size_t bytes) {
  if (bytes == 0) return;
#if defined(__x86_64__)
  if (bytes >= kStreamFromBytes && can_stream())
    return stream_copy(static_cast<uint8_t*>(destination), static_cast<const uint8_t*>(source), bytes);
#endif
  std::memcpy(destination, source, bytes);
}

}  // namespace skate::store
