// Identifiers: fixed-size byte strings with the sizes that Ray's programs know.
//
// JobId 4 bytes; ActorId = 12 unique + job; TaskId = 8 sequence + 12 origin + job; ObjectId = task +
// 4-byte little-endian index; NodeId, WorkerId 28; PlacementGroupId = 14 unique + job.
// A TaskId's origin is the actor's 12 unique bytes for an actor's tasks; for a normal task it begins
// with 0xFF and holds 11 bytes of the submitter's worker id, so that ids never clash across processes.
// The nil value is all 0xFF, as in Ray.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace skate {

/// Writes `size` bytes as lower-case hexadecimal.
std::string to_hex(const uint8_t* data, size_t size);
/// False when `hex` is not exactly `2 * size` hexadecimal digits.
bool from_hex(std::string_view hex, uint8_t* out, size_t size);
/// Bytes of the operating system's random source; for identifiers and keys, never for simulation.
void secure_random_bytes(uint8_t* out, size_t size);

template <class Tag, size_t N>
struct Id {
  static constexpr size_t kSize = N;
  std::array<uint8_t, N> bytes;

  constexpr Id() { bytes.fill(0xFF); }

  static constexpr Id nil() { return Id{}; }
  static Id random() {
    Id id;
    secure_random_bytes(id.bytes.data(), N);
    return id;
  }
  static Id from_bytes(const void* data) {
    Id id;
    std::memcpy(id.bytes.data(), data, N);
    return id;
  }
  static std::optional<Id> parse_hex(std::string_view hex) {
    Id id;
    if (!from_hex(hex, id.bytes.data(), N)) return std::nullopt;
    return id;
  }

  bool is_nil() const { return *this == Id{}; }
  std::string hex() const { return to_hex(bytes.data(), N); }
  const uint8_t* data() const { return bytes.data(); }
  uint8_t* data() { return bytes.data(); }

  friend bool operator==(const Id&, const Id&) = default;
  friend auto operator<=>(const Id&, const Id&) = default;
};

using JobId = Id<struct JobTag, 4>;
using NodeId = Id<struct NodeTag, 28>;
using WorkerId = Id<struct WorkerTag, 28>;
using PlacementGroupId = Id<struct PlacementGroupTag, 18>;
using FunctionId = Id<struct FunctionTag, 28>;

struct ActorId : Id<struct ActorTag, 16> {
  ActorId() = default;
  ActorId(const Id& id) : Id(id) {}
  static ActorId make(JobId job);
  JobId job() const { return JobId::from_bytes(data() + 12); }
};

struct TaskId : Id<struct TaskTag, 24> {
  TaskId() = default;
  TaskId(const Id& id) : Id(id) {}
  /// A normal task, the `sequence`-th made by `owner` (start the count at a random number).
  static TaskId normal(uint64_t sequence, const WorkerId& owner, JobId job);
  /// A call of an actor. `sequence` must differ between all calls of all callers: start at random.
  static TaskId actor_call(uint64_t sequence, const ActorId& actor);
  /// The task that creates `actor`.
  static TaskId actor_creation(const ActorId& actor);
  /// Nil unless this task belongs to an actor.
  ActorId actor() const;
  JobId job() const { return JobId::from_bytes(data() + 20); }
};

struct ObjectId : Id<struct ObjectTag, 28> {
  ObjectId() = default;
  ObjectId(const Id& id) : Id(id) {}
  static ObjectId of(const TaskId& task, uint32_t index);
  TaskId task() const { return TaskId(TaskId::from_bytes(data())); }
  uint32_t index() const;
  JobId job() const { return JobId::from_bytes(data() + 20); }
};

/// Mixes the first and the last bytes, in which ids of one origin differ.
template <class AnyId>
struct IdHash {
  using is_avalanching = void;
  size_t operator()(const AnyId& id) const noexcept {
    uint64_t head = 0, tail = 0;
    constexpr size_t kWord = AnyId::kSize < 8 ? AnyId::kSize : 8;
    std::memcpy(&head, id.bytes.data(), kWord);
    std::memcpy(&tail, id.bytes.data() + AnyId::kSize - kWord, kWord);
    uint64_t mixed = (head ^ (tail * 0x9E3779B97F4A7C15ull)) * 0xD6E8FEB86659FD93ull;
    return static_cast<size_t>(mixed ^ (mixed >> 32));
  }
};

}  // namespace skate

template <class Tag, size_t N>
struct std::hash<skate::Id<Tag, N>> : skate::IdHash<skate::Id<Tag, N>> {};
template <>
struct std::hash<skate::ActorId> : skate::IdHash<skate::ActorId> {};
template <>
struct std::hash<skate::TaskId> : skate::IdHash<skate::TaskId> {};
template <>
struct std::hash<skate::ObjectId> : skate::IdHash<skate::ObjectId> {};
