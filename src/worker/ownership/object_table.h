// ObjectTable: who owns, holds and borrows which objects. Pure: no I/O, no clock, no lock of its own.
//
// The protocol, in one rule: whoever passes a ref on keeps his own hold until the receiver is known to the
// owner. A *grant* is the owner's promise to keep an object for one other process; grants are counted, so
// that messages that cross each other add up (the owner's count is what was given less what came back, and
// equals what borrowers hold plus what is under way).
//
//   ref in a task's arguments   the submitter pins it until the task is done. If the worker still holds it
//                               then, it registers with the owner first; where the owner is not the
//                               submitter, the submitter keeps its pins until PinsReleased.
//   ref in a result             the worker grants what it owns to the submitter with the result; for what
//                               others own it keeps its own hold until the submitter, having registered,
//                               says ResultsTaken.
//   ref inside an object        held by the object's owner as long as the object lives; who reads the object
//                               registers with the inner ref's owner and holds the outer one until then.
//   dropping the last hold      a borrower gives back all grants it has of the object.
//   death of a borrower         all its grants are void.
//   death of an owner           whoever holds something of it registers that anew, with the owner's heir: the
//                               daemon of its node, to which the effects send what is for the dead. What the
//                               heir does not have is lost. A value that is here is registered too: its
//                               reader needs no owner, but whoever he passes the ref on to does.
//   hand-over                   a death of which the heir has the inventory beforehand. The owner gives its
//                               heir what others hold, and what that contains; once all is confirmed, it
//                               ends, and the rest is as in any death. Until then it is the owner and
//                               answers as ever, but frees nothing that it gave. It may begin only when
//                               every ref that it holds of others is known to their owners, and when nothing
//                               that it alone can finish is due (`may_give`).
//
// Messages of a pair of processes keep their order, so a registration sent before a completion to the same
// process needs no acknowledgement. An owned object goes when nothing holds it: no handle, no pin, no grant.
#pragma once

#include <atomic>
#include <boost/unordered/unordered_flat_map.hpp>
#include <memory>
#include <vector>

#include "base/ids.h"
#include "worker/blob.h"

namespace skate::worker {

class Peer;
struct Waiter;
struct TaskRecord;

enum class ObjectState : uint8_t {
  kPending,  ///< its task runs, or its owner has not been heard
  kInline,   ///< `value` holds the flat value (an error too is a value)
  kStored,   ///< in the object store of a node
};

struct Entry {
  ObjectId id;
  Peer* owner = nullptr;             ///< null: this process
  std::atomic<uint32_t> handles{0};  ///< of the program
  uint32_t pins = 0;                 ///< of tasks, containing objects, streams
  uint32_t grants_out = 0;           ///< to borrowers (owned objects)
  uint32_t grants_in = 0;            ///< from the owner (borrowed ones)
  std::atomic<ObjectState> state{ObjectState::kPending};
  bool is_error = false;
  bool asked = false;           ///< GetObject is under way
  bool in_local_store = false;  ///< this process must erase it from the store at the end (owned)
  bool keeps_actor = false;     ///< the handle count of an actor; end of it ends the actor
  bool given = false;           ///< handed over (owned): pinned until this process ends
  uint64_t size_bytes = 0;
  BlobPtr value;
  TaskRecord* task = nullptr;                      ///< makes it, while that is to come
  std::unique_ptr<std::vector<Entry*>> contained;  ///< pinned by this object
  std::vector<Waiter*> waiters;
  std::unique_ptr<std::vector<Peer*>> remote_waiters;

  bool ready() const { return state.load(std::memory_order_acquire) != ObjectState::kPending; }
};

/// What the table wants done; the runtime sends and frees, a test records.
class OwnershipEffects {
 public:
  virtual ~OwnershipEffects() = default;
  virtual void register_ref(Peer* owner, const ObjectId& id, uint32_t count) = 0;
  virtual void release_ref(Peer* owner, const ObjectId& id, uint32_t count) = 0;
  virtual void pins_released(Peer* submitter, uint64_t token) = 0;
  virtual void results_taken(Peer* worker, uint64_t token) = 0;
  virtual void erase_stored(const ObjectId& id) = 0;
  virtual void actor_out_of_scope(const ObjectId& handle) = 0;
  /// The object's producer is no longer needed for it (lineage ends, or a pending task lost its last reader).
  virtual void object_gone(Entry& entry) = 0;
};

/// Something owed to another process once a set of registrations is acknowledged.
struct Obligation {
  enum class Kind : uint8_t { kPinsReleased, kResultsTaken, kUnpin };
  Kind kind{};
  Peer* peer = nullptr;
  uint64_t token = 0;
  ObjectId outer;
};

class ObjectTable {
 public:
  explicit ObjectTable(OwnershipEffects& effects) : effects_(effects) {}
  ~ObjectTable();
  ObjectTable(const ObjectTable&) = delete;
  ObjectTable& operator=(const ObjectTable&) = delete;

  /// A new object of this process, without any hold yet: the caller takes one before it returns.
  Entry* create(const ObjectId& id);
  Entry* find(const ObjectId& id) const;
  /// The entry of a ref that came from elsewhere: `owner` null means this process (then it must exist).
  Entry* intern(const ObjectId& id, Peer* owner);
  size_t size() const { return entries_.size(); }
  template <class F>
  void for_each(F&& visit) {
    for (auto& [id, entry] : entries_) visit(*entry);
  }

  void pin(Entry* entry) { ++entry->pins; }
  void unpin(Entry* entry);
  /// Frees the entry if nothing holds it. `entry` may be dangling afterwards.
  void settle(Entry* entry);
  /// Gives up one handle.
  void drop_handle(Entry* entry);

  /// Owner's side.
  void grant(Entry* entry, Peer* borrower, uint32_t count);
  /// False: more came back than was given, or the object is unknown (a peer's mistake; nothing changed).
  bool take_back(const ObjectId& id, Peer* borrower, uint32_t count);
  uint32_t granted_to(const Entry* entry, Peer* borrower) const;

  /// Borrower's side: grants that came with a message.
  void received_grant(Entry* entry, uint32_t count) { entry->grants_in += count; }
  /// Registers those of `entries` that are borrowed and not yet known to their owners. When all of them are
  /// acknowledged the obligation is met; at once if none needs it, or all needed ones belong to
  /// `ordered_with` (messages to it, and to its heir, keep their order). Returns true if it was met at once;
  /// then nothing is sent for it: the caller does the thing itself.
  bool register_then(const std::vector<Entry*>& entries, Peer* ordered_with, const Obligation& obligation);
  /// Registers a borrowed object if it is not; nothing waits for that.
  void claim(Entry* entry);
  /// The owner's acknowledgement.
  void registered(const ObjectId& id);
  /// Whether the next acknowledgement is the last that is due: earlier ones speak of a hold that was given
  /// up.
  bool last_answer(const ObjectId& id) const;

  /// Keeps `inner` alive as long as `outer` lives.
  void contain(Entry* outer, std::vector<Entry*> inner);

  /// Whether the heir could take this process's place: no registration of its own is unanswered, and no
  /// actor's life hangs on its counts. (Its tasks and their results are the caller's to know.)
  bool may_give() const;
  /// This process will end. What others hold of it, what that and the already given contain, and was not
  /// given yet: about `bytes_max` of values, `count_max` objects at most. Each is pinned, so that only the
  /// heir frees it.
  std::vector<Entry*> give(uint64_t bytes_max, size_t count_max);
  /// The heir refused: all is as if nothing had been given.
  void take_home();
  /// Whether anybody else holds an object of this process's.
  bool granted_any() const;

  /// All grants of a dead process are void; what it owned is registered anew.
  void peer_died(Peer* peer);

 private:
  struct Pending {
    Obligation obligation;
    uint32_t remaining;
  };
  // An object may be registered, dropped and registered again before the first acknowledgement comes, which
  // says nothing of the second registration: what waits, waits for the last.
  struct Registering {
    Peer* owner;
    uint32_t unanswered;
    std::vector<std::shared_ptr<Pending>> waiting;
  };
  Registering& register_anew(Entry* entry);
  void meet(const Obligation& obligation);
  void answered(const std::vector<std::shared_ptr<Pending>>& waiting);

  OwnershipEffects& effects_;
  boost::unordered_flat_map<ObjectId, Entry*, IdHash<ObjectId>> entries_;
  boost::unordered_flat_map<Peer*, boost::unordered_flat_map<ObjectId, uint32_t, IdHash<ObjectId>>> granted_;
  boost::unordered_flat_map<ObjectId, Registering, IdHash<ObjectId>> registering_;
};

}  // namespace skate::worker
