// AdoptedObjects: what the node daemon owns because the process that owned it has ended. Pure: events in,
// effects out. README.md in this folder is the protocol.
//
// Guarantees: what a living process holds (it claimed it and has not released it), and what such an object
// contains, is kept if its value was in the object store or was handed over; all else is freed once every
// process that had a link to the owner has said what it holds. Home: the daemon's loop. It does not: send
// messages, look into the store, or know why a process ended.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "wire/node_messages.h"

namespace skate::node {

class AdoptionEffects {
 public:
  using ProcessNumber = uint64_t;
  virtual ~AdoptionEffects() = default;
  /// A living process shall keep its object for the daemon, once more / once less.
  virtual void hold(ProcessNumber owner, const ObjectId& id) = 0;
  virtual void unhold(ProcessNumber owner, const ObjectId& id) = 0;
  virtual void erase_stored(const ObjectId& id) = 0;
  /// What the store has under this id, sealed or on disk.
  virtual std::optional<wire::KeptObject> look(const ObjectId& id) = 0;
};

class AdoptedObjects {
 public:
  using ProcessNumber = AdoptionEffects::ProcessNumber;
  explicit AdoptedObjects(AdoptionEffects& effects, uint64_t inline_bytes_max = kInlineBytesMax)
      : effects_(effects), inline_bytes_max_(inline_bytes_max) {}
  AdoptedObjects(const AdoptedObjects&) = delete;
  AdoptedObjects& operator=(const AdoptedObjects&) = delete;

  void process_came(ProcessNumber number, const WorkerId& id, uint64_t first_sequence);
  /// Whether these are nobody's yet, so that an id tells its owner.
  bool sequences_free(uint64_t first_sequence) const;

  /// `from` is about to end and gives these away. `part` numbers its calls: one that comes twice is answered
  /// as before, and does nothing. False: with these, inline values would take more than
  /// `inline_bytes_max`; then nothing that it gave is kept.
  bool hand_over(ProcessNumber from, uint64_t part, std::vector<wire::KeptObject> objects);
  /// It stays after all: what it gave is its own, and its to free. Nobody has claimed any of it.
  void withdraw(ProcessNumber giver);
  /// `linked`: who may hold something of it, and will say so. `stored`: what the store has of it.
  /// To be called before anybody is told.
  void process_ended(ProcessNumber number, const std::set<ProcessNumber>& linked,
                     const std::vector<ObjectId>& stored);
  wire::ObjectsClaimed claim(ProcessNumber from, const wire::ClaimObjects& request);
  void release(ProcessNumber from, const std::vector<ObjectId>& ids);

  /// The process, living or not, that made this id. Nothing: not of this node, or ended long ago.
  std::optional<WorkerId> owner_of(const ObjectId& id) const;
  bool adopted(const ObjectId& id) const { return objects_.contains(id); }
  bool held(ProcessNumber holder, const ObjectId& id) const;
  /// Whether `id` is in the store for nobody: its owner has ended, all have claimed, nobody claimed it.
  bool is_stray(const ObjectId& id) const;
  /// True once after an owner's objects were settled: time to look for strays (results that were finished
  /// after their owner's end).
  bool take_settled() { return std::exchange(settled_, false); }
  size_t size() const { return objects_.size(); }
  uint64_t inline_bytes() const { return inline_bytes_; }
  /// Empty, or what does not add up.
  std::string check() const;

  static constexpr uint64_t kInlineBytesMax = 256ull << 20;

 private:
  struct Inner {
    ObjectId id;
    ProcessNumber held_from;  ///< 0: it is (or was) among the adopted
  };
  struct Object {
    wire::KeptObject what;
    WorkerId owner;
    std::set<ProcessNumber> holders;
    uint32_t inside = 0;  ///< how often adopted objects contain it
    bool offered = true;  ///< its owner lives yet, or not everybody has said what he holds
    std::vector<Inner> inner;
  };
  struct Known {
    ProcessNumber number;
    uint64_t first_sequence;
    bool alive;
  };

  Object* find(const ObjectId& id);
  Object& insert(wire::KeptObject what, const WorkerId& owner);
  void bind(Object& object, ProcessNumber giver);
  bool unhold(const Inner& inner, ProcessNumber giver);
  void settle(const WorkerId& owner);
  void settle_if_needless(const ObjectId& id);
  void collect();
  void forget_oldest();
  std::string origin_of(const WorkerId& id) const;

  AdoptionEffects& effects_;
  const uint64_t inline_bytes_max_;
  std::unordered_map<ObjectId, Object> objects_;
  std::map<ProcessNumber, std::set<ObjectId>> held_by_;              // by holders
  std::map<ProcessNumber, std::map<ObjectId, uint32_t>> held_from_;  // of living owners, for what contains it
  std::map<WorkerId, std::set<ProcessNumber>> settling_;             // who has not yet said what he holds
  std::map<WorkerId, Known> known_;
  std::map<ProcessNumber, WorkerId> living_;
  std::map<ProcessNumber, std::pair<uint64_t, bool>>
      handed_over_;                            // of the living: last part, and its answer
  std::map<std::string, WorkerId> by_origin_;  // the part of a worker's id that is in its tasks' ids
  std::map<uint64_t, WorkerId> by_sequence_;   // of the first one
  std::deque<WorkerId> ended_;                 // oldest first
  uint64_t inline_bytes_ = 0;
  bool settled_ = false;
};

}  // namespace skate::node
