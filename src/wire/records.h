// Records between processes on the data path: flat structs followed by bytes, 16-byte aligned bodies.
//
//   owner -> worker    LeaseInfo, DefineFunction, PushTask, StreamCredit, CancelTask, ResultsTaken
//   worker -> owner    TaskDone, TaskReturned, StreamItem, PinsReleased
//   borrower -> owner  GetObject, RegisterRef, ReleaseRef, CancelObject
//   owner -> borrower  ObjectValue, RefRegistered
//
// The records of one pair of processes arrive in the order in which they were sent; the protocol leans on it
// (a function is defined before it is used, a grant precedes its return). A reader checks every size.
#pragma once

#include <cstring>
#include <span>

#include "base/result.h"
#include "wire/types.h"

namespace skate::wire {

enum class RecordType : uint16_t {
  kDefineFunction = 256,
  kPushTask,
  kTaskDone,
  kTaskReturned,
  kStreamItem,
  kStreamCredit,
  kCancelTask,
  kGetObject,
  kObjectValue,
  kRegisterRef,
  kRefRegistered,
  kReleaseRef,
  kPinsReleased,
  kResultsTaken,
  kLeaseInfo,
  kCancelObject,
};

enum class ReturnMode : uint8_t { kStatic, kDynamic, kStreaming };

/// Followed by the blob. `number` is the sender's, used by its later PushTasks.
struct DefineFunction {
  FunctionId function;
  uint32_t number;
};

inline constexpr uint32_t kNoClaim = 0xFFFFFFFF;

/// The objects of a task: its results, and the items that it yields, of which the result comes first.
inline ObjectId result_id(const TaskId& task, uint64_t index) {
  return ObjectId::of(task, static_cast<uint32_t>(index + 1));
}
inline ObjectId item_id(const TaskId& task, uint64_t index) { return result_id(task, index + 1); }

/// In place of a number of items read: the consumer is gone, stop.
inline constexpr uint64_t kStreamAbandoned = ~uint64_t{0};

/// Where an attempt of a task that yields items goes on.
struct StreamStart {
  int64_t backpressure;  ///< items that may be unread; -1 without limit
  uint64_t arrived;      ///< items that the owner has from attempts before: they are not sent again
  uint64_t consumed;     ///< as in StreamCredit
};

/// Followed by StreamStart unless `mode` is kStatic, then method name, concurrency group, display name, what
/// an actor's call is to be retried on (pickled classes), padding to 16, then the arguments.
struct PushTask {
  uint64_t token;        ///< the owner's name for this attempt, echoed in what answers it
  uint64_t incarnation;  ///< of the actor that is meant
  TaskId task;
  uint32_t function;
  uint32_t claim;  ///< push sequence whose word must be claimed, or kNoClaim
  uint32_t num_returns;
  uint32_t argument_count;
  uint32_t max_calls;
  uint16_t method_bytes;
  uint16_t group_bytes;
  uint16_t name_bytes;
  uint16_t retry_classes_bytes;
  uint16_t attempt;
  ReturnMode mode;
  uint8_t retry_exceptions;
};

enum class ArgumentKind : uint8_t {
  kValue,   ///< the flat value follows
  kStored,  ///< a ref (ObjectRecord) whose value lies in the object store of the owner's node
};

/// One argument: this header, the keyword (empty: positional), padding to 16, the body, padding to 16.
struct ArgumentHeader {
  uint64_t body_bytes;
  uint16_t keyword_bytes;
  ArgumentKind kind;
  uint8_t padding[5];
};

struct ObjectRecord {
  ObjectId object;
  Address owner;
};

enum class TaskStatus : uint8_t {
  kOk,
  kRaised,           ///< the function raised; the value is its exception
  kRaisedRetryable,  ///< as above, and retry_exceptions covers it
  kCancelled,
  kWrongIncarnation,  ///< not for this life of the actor; nothing was run
  kExited,            ///< the actor ended itself in this call (exit_actor)
};

/// Followed by `result_count` results.
struct TaskDone {
  uint64_t token;
  uint64_t run_ns;
  uint64_t stream_items;  ///< of a generator: how many items it made
  uint64_t untaken;  ///< the worker's number for refs in the results that it holds until ResultsTaken, or 0
  uint32_t result_count;
  TaskStatus status;
  uint8_t holds_refs;    ///< keep what this task pins until PinsReleased
  uint8_t worker_exits;  ///< max_calls is reached
  uint8_t padding;
};

enum class ResultKind : uint8_t { kInline, kStored };

/// One result: this header, `contained_count` ObjectRecords, padding to 16, the flat value if inline,
/// padding.
struct ResultHeader {
  uint64_t value_bytes;  ///< flat size, inline or in the store
  uint32_t contained_count;
  ResultKind kind;
  uint8_t is_error;
  uint8_t padding[2];
};

/// The worker gives a task back that it has not begun.
struct TaskReturned {
  uint64_t token;
};

/// Followed by one result.
struct StreamItem {
  uint64_t token;
  uint64_t index;    ///< from 0
  uint64_t untaken;  ///< as in TaskDone
};

struct StreamCredit {
  uint64_t token;
  uint64_t consumed;  ///< items read so far, or kStreamAbandoned
};

struct CancelTask {
  uint64_t token;
  TaskId task;
  uint8_t recursive;
  uint8_t padding[7];
};

/// A borrower asks the owner to cancel the task that makes the object, as if the owner did so itself.
struct CancelObject {
  ObjectId object;
  uint8_t force;
  uint8_t recursive;
  uint8_t padding[2];
};

struct GetObject {
  ObjectId object;
};

enum class ValueStatus : uint8_t { kInline, kStored, kGone };

/// Followed by one result. kGone: nobody knows the object here any more.
struct ObjectValue {
  ObjectId object;
  ValueStatus status;
  uint8_t padding[3];
};

/// `count` grants of the object pass to the sender of RegisterRef / back from the sender of ReleaseRef.
struct RefMessage {
  ObjectId object;
  uint32_t count;
};

/// kPinsReleased, kResultsTaken: the task's token / `untaken` of TaskDone or StreamItem.
struct TokenMessage {
  uint64_t token;
};

/// kLeaseInfo (archive-encoded): what a lease holds for the tasks that follow from the same owner.
struct LeaseInfo {
  Resources resources;
  ResourceInstances instances;
  std::string runtime_env;
  std::string scheduling;
};

/// Reads the next piece of a record; every failure leaves it failed.
class RecordReader {
 public:
  explicit RecordReader(std::span<const uint8_t> body) : all_(body), rest_(body) {}
  template <class T>
  T get() {
    T value{};
    if (rest_.size() < sizeof(T)) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  std::span<const uint8_t> bytes(uint64_t size) {
    if (rest_.size() < size) {
      ok_ = false;
      return {};
    }
    std::span<const uint8_t> out = rest_.first(size);
    rest_ = rest_.subspan(size);
    return out;
  }
  std::string text(uint64_t size) {
    std::span<const uint8_t> out = bytes(size);
    return std::string(reinterpret_cast<const char*>(out.data()), out.size());
  }
  /// Skips to the next multiple of 16 from the record's start.
  void align() {
    size_t used = all_.size() - rest_.size();
    bytes((16 - used % 16) % 16);
  }
  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }
  size_t offset() const { return all_.size() - rest_.size(); }

 private:
  std::span<const uint8_t> all_;
  std::span<const uint8_t> rest_;
  bool ok_ = true;
};

/// Appends pieces of a record to a string, with the same alignment rule.
class RecordWriter {
 public:
  explicit RecordWriter(std::string& out) : out_(out), start_(out.size()) {}
  template <class T>
  void put(const T& value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void bytes(const void* data, size_t size) { out_.append(static_cast<const char*>(data), size); }
  uint8_t* grow(size_t size) {
    size_t at = out_.size();
    out_.resize(at + size);
    return reinterpret_cast<uint8_t*>(out_.data() + at);
  }
  void align() { out_.append((16 - (out_.size() - start_) % 16) % 16, '\0'); }

 private:
  std::string& out_;
  size_t start_;
};

}  // namespace skate::wire
