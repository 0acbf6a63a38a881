// A value as bytes: one flat, relocatable, little-endian run that messages carry and the store keeps.
//
//   header   32 bytes: magic u8, format u8, version u8, flags u8 (0), n_buffers u32, n_refs u32,
//            n_owners u32, inband_bytes u64, total_bytes u64
//   owners   n_owners x {WorkerId 28, NodeId 28}
//   refs     n_refs x {ObjectId 28, owner index u32}
//   sizes    n_buffers x u64
//   in-band  inband_bytes
//   buffers  each at the next multiple of 64 from the value's start; gaps are zero
//
// The value's start is 64-aligned in the store, so that every buffer is. In a message it need not be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "wire/types.h"

namespace skate::wire {

/// How the in-band bytes and the buffers are to be read. Numbers are the protocol.
enum class ValueFormat : uint8_t {
  kRaw = 0,      ///< Python bytes: in-band, or, when large, the only buffer
  kNative = 1,   ///< the native Python codec
  kPickle5 = 2,  ///< pickle protocol 5 with out-of-band buffers
  kArrowIpc = 3,
  kMsgpack = 4,      ///< between languages
  kError = 5,        ///< an exception of the user's: in-band is a pickled task error
  kSystemError = 6,  ///< an error of the runtime's: see SystemError below
};
inline constexpr uint8_t kValueFormatMax = 6;

inline constexpr size_t kValueAlign = 64;
inline constexpr size_t kValueHeaderBytes = 32;

struct ValueRef {
  ObjectId id;
  uint32_t owner = 0;  ///< index into the owners
  friend bool operator==(const ValueRef&, const ValueRef&) = default;
};
static_assert(sizeof(ValueRef) == 32);
static_assert(sizeof(Address) == 56);

/// As memcpy. Used for parts of at least `kLargePartBytes`; a put passes one that bypasses the caches.
using CopyFunction = void (*)(void* destination, const void* source, size_t bytes);
inline constexpr size_t kLargePartBytes = 64 * 1024;

/// The parts of a value to be written; holds spans only. Every ref's owner must be an index into `owners`.
struct ValueParts {
  ValueFormat format{};
  std::span<const uint8_t> inband;
  std::span<const std::span<const uint8_t>> buffers;
  std::span<const ValueRef> refs;
  std::span<const Address> owners;

  size_t flat_size() const;
  /// Writes exactly flat_size() bytes.
  void write_to(uint8_t* out, CopyFunction copy = nullptr) const;
  std::vector<uint8_t> to_bytes() const;
};

/// A validated value that somebody else's memory holds. Reading it goes nowhere outside that memory, even
/// if a writer changes it afterwards: counts and sizes were copied out, and owner() checks its index.
class ValueView {
 public:
  ValueFormat format() const { return format_; }
  bool is_error() const { return format_ == ValueFormat::kError || format_ == ValueFormat::kSystemError; }
  std::span<const uint8_t> bytes() const { return {start_, total_bytes_}; }
  std::span<const uint8_t> inband() const { return {start_ + inband_at_, inband_bytes_}; }

  uint32_t owner_count() const { return n_owners_; }
  Address owner(uint32_t index) const;
  uint32_t ref_count() const { return n_refs_; }
  ValueRef ref(uint32_t index) const;  ///< its owner is below owner_count()

  uint32_t buffer_count() const { return n_buffers_; }
  /// All buffers in order; empty when `buffer_count` is 0.
  std::vector<std::span<const uint8_t>> buffers() const;
  /// The first buffer; empty when there is none.
  std::span<const uint8_t> first_buffer() const;

 private:
  friend Result<ValueView> parse_value(std::span<const uint8_t> bytes);
  const uint8_t* start_ = nullptr;
  size_t total_bytes_ = 0;
  size_t inband_at_ = 0;
  size_t inband_bytes_ = 0;
  uint32_t n_buffers_ = 0;
  uint32_t n_refs_ = 0;
  uint32_t n_owners_ = 0;
  ValueFormat format_{};
};

/// kCorrupt unless `bytes` is exactly one well-formed value. No copy, no allocation.
Result<ValueView> parse_value(std::span<const uint8_t> bytes);

/// The in-band part of a kSystemError: the kind that the languages know, and fields, all text.
struct SystemError {
  std::string kind;
  std::map<std::string, std::string> fields;
  friend bool operator==(const SystemError&, const SystemError&) = default;
};
/// The whole flat value of a system error.
std::vector<uint8_t> encode_system_error(std::string_view kind,
                                         const std::map<std::string, std::string>& fields);
Result<SystemError> parse_system_error(std::span<const uint8_t> inband);

}  // namespace skate::wire
