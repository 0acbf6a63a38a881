// SimObjects: what the processes of one simulated node have in common: their links, the store (a map), the
// daemon's real AdoptedObjects, and an eye that sees all of them and checks.
//
// Messages keep their order on each link and overtake each other between links; those that may come twice do.
// A process ends at any moment, in order or unwarned, and the daemon notices later.
//
// Checked after every message that is about objects: what a living process holds is with its living owner, or
// with the heir of one that ended in order, and what is stored is in the store, though its owner died; what
// the heir keeps keeps what it contains. Excused is only a hold that its owner's books never had, of an
// object that somebody had who died unwarned.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "node/adoption/adopted_objects.h"
#include "rt/sim_loop.h"
#include "rt/task_group.h"
#include "sim/sim_process.h"

namespace skate::sim {

/// What happened, to show that something did.
struct ObjectCounts {
  uint64_t messages{};
  uint64_t adopted{};  ///< answers that an object was kept
  uint64_t lost{};
  uint32_t deaths{};      ///< unwarned, of processes that had to do with objects
  uint32_t hand_overs{};  ///< processes that ended in order
  uint32_t refusals{};    ///< of hand-overs, for want of room
  uint32_t calls{};       ///< of actors
};

/// What the node does that is not about objects.
class SimDaemon {
 public:
  virtual ~SimDaemon() = default;
  virtual void on_message(ProcessNumber from, const Message& message) = 0;
  /// The end of a process is known and dealt with, but for leases, actors and jobs.
  virtual void buried(ProcessNumber process, wire::DeathKind kind) = 0;
  virtual void works(ProcessNumber worker, bool at_work) = 0;
  virtual void out_of_scope(const ActorId& actor) = 0;
  /// One that runs here and that processes of this job may call; 0: there is none.
  virtual std::pair<ProcessNumber, ActorId> some_actor(const JobId& job) = 0;
};

struct SimObjectsOptions {
  bool little_room = false;      ///< for small values of the dead
  double crash_probability = 0;  ///< for each task
  bool gentle = false;           ///< nothing is done that kills
};

class SimObjects final : private node::AdoptionEffects {
 public:
  SimObjects(rt::SimLoop& loop, const NodeId& node, SimDaemon& daemon, SimObjectsOptions options,
             ObjectCounts& counts);
  ~SimObjects() override;

  // For the node.
  SimProcess& start(ProcessNumber number, const JobId& job, bool is_driver);
  SimProcess* find(ProcessNumber number);  ///< null unless it is alive
  void end(ProcessNumber number, wire::DeathKind kind);
  bool runs(ProcessNumber number) const;
  /// Known to the daemon, which may not have noticed its end.
  bool is_known(ProcessNumber number) const;
  void link(ProcessNumber one, ProcessNumber other);
  void tell(ProcessNumber to, Message message) { post(kDaemon, to, std::move(message)); }
  SimObjectsOptions& options() { return options_; }
  const SimObjectsOptions& options() const { return options_; }
  void set_mood(SimProcess::Mood mood) { mood_ = mood; }
  const std::string& problem() const { return problem_; }
  /// Empty, or which process waits, for what; what is left.
  std::string waiting();
  std::string leftovers() const;

  // For processes.
  rt::SimLoop& loop() { return loop_; }
  SimDaemon& daemon() { return daemon_; }
  const NodeId& node() const { return node_; }
  SimProcess::Mood mood() const { return mood_; }
  ObjectCounts& counts() { return counts_; }
  void send(ProcessNumber from, ProcessNumber to, Message message);
  void tell_daemon(ProcessNumber from, Message message) { post(from, kDaemon, std::move(message)); }
  void end_in_order(ProcessNumber number) { end(number, wire::DeathKind::kIntended, true); }
  /// All that `from` wrote to `to` is read now.
  void drain(ProcessNumber from, ProcessNumber to);
  void store(const ObjectId& id, const std::vector<Ref>& refs);
  void erase(const ObjectId& id) { store_.erase(id); }
  /// A new object of this process.
  void made(const ObjectId& id, ProcessNumber owner);
  bool is_known(const ObjectId& id) const { return known_.contains(id); }
  /// `outer` contains `inner`: who had the one may have the other.
  void contains(const ObjectId& outer, const ObjectId& inner);
  void touch_inside(const ObjectId& outer, const ObjectId& inner);
  /// Whether `from` is, contains, or leads to `to`.
  bool reaches(const ObjectId& from, const ObjectId& to) const;
  /// `holder` has let it go; the heir does not have it.
  void let_go(ProcessNumber holder, const ObjectId& id) { lives_.at(holder).secured.erase(id); }
  void refused(ProcessNumber holder, ProcessNumber owner, const ObjectId& id);
  void check();
  bool nobody_died() const { return !somebody_died_; }
  void fail(std::string what);

 private:
  static constexpr ProcessNumber kDaemon = 0;
  struct Life {
    std::unique_ptr<SimProcess> process;  // until it is buried
    bool alive = true;
    bool in_order = false;  // it ended so
    wire::DeathKind kind{};
    std::set<ProcessNumber> linked;
    std::set<ProcessNumber> asked;         // for links with the dead
    std::set<ProcessNumber> refuse_later;  // who asked for a link with it
    std::unordered_set<ObjectId> secured;  // its holds that were on the books at some time
  };
  struct Known {
    ProcessNumber owner{};
    std::set<ProcessNumber> touched;  // whose deaths may cost it
    std::vector<ObjectId> inside;
  };

  void end(ProcessNumber number, wire::DeathKind kind, bool in_order);
  void post(ProcessNumber from, ProcessNumber to, Message message);
  rt::Task<void> carry(ProcessNumber from, ProcessNumber to);
  rt::Task<void> notice_end(ProcessNumber number);
  void bury(ProcessNumber number);
  void deliver(ProcessNumber from, ProcessNumber to);
  void daemon_handles(ProcessNumber from, const Message& message);
  void forget_given(ProcessNumber giver);
  void after_adoption();
  void check_held(ProcessNumber holder, Life& life);
  std::map<ObjectId, std::vector<ObjectId>> held_inside(ProcessNumber who);
  bool is_alive(ProcessNumber number) const { return lives_.at(number).alive; }
  bool is_buried(ProcessNumber number) const { return lives_.at(number).process == nullptr; }
  bool on_the_books(ProcessNumber holder, const ObjectId& id);
  bool is_there(const ObjectId& id);
  bool excused(ProcessNumber holder, const ObjectId& id) const;

  void hold(ProcessNumber owner, const ObjectId& id) override;
  void unhold(ProcessNumber owner, const ObjectId& id) override;
  void erase_stored(const ObjectId& id) override { store_.erase(id); }
  std::optional<wire::KeptObject> look(const ObjectId& id) override;

  rt::SimLoop& loop_;
  const NodeId node_;
  SimDaemon& daemon_;
  SimObjectsOptions options_;
  ObjectCounts& counts_;
  std::string problem_;
  SimProcess::Mood mood_ = SimProcess::Mood::kWorks;
  bool somebody_died_ = false;
  std::map<ProcessNumber, Life> lives_;
  std::map<std::pair<ProcessNumber, ProcessNumber>, std::deque<Message>> links_;  // from, to
  std::unordered_map<ObjectId, wire::KeptObject> store_;
  std::unordered_map<ObjectId, Known> known_;
  node::AdoptedObjects adopted_;
  std::map<ObjectId, std::vector<ObjectId>> leads_to_;  // what the heir keeps, and what that contains
  rt::TaskGroup tasks_;
};

}  // namespace skate::sim
