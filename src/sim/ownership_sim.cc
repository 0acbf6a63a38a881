#include "sim/ownership_sim.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "node/adoption/adopted_objects.h"
#include "worker/ownership/object_table.h"
#include "worker/peer.h"

namespace skate::sim {

using namespace worker;

namespace {

/// The ids of the process with this number.
WorkerId worker_of(uint32_t process) {
  WorkerId id;
  id.bytes.fill(1);
  std::memcpy(id.data(), &process, sizeof process);
  return id;
}
uint32_t number_of(const WorkerId& id) {
  uint32_t process = 0;
  std::memcpy(&process, id.data(), sizeof process);
  return process;
}
uint64_t first_sequence(uint32_t process) { return (uint64_t{process} + 1) * 2 * wire::kSequencesMax; }
ActorId numbered_actor(uint32_t process) {
  ActorId id;
  id.bytes.fill(2);
  std::memcpy(id.data(), &process, sizeof process);
  return id;
}

struct Ref {
  ObjectId id;
  uint32_t owner;
};

struct Message {
  enum class Kind {
    kRegister,
    kRegistered,
    kRelease,
    kPinsReleased,
    kResultsTaken,
    kPush,
    kDone,
    kGet,
    kValue,
    kDied,
    kOpen,     // to the daemon: a link with `who`
    kClaim,    // to the daemon: holds `ids` of `who`
    kClaimed,  // from it
    kLetGo,    // to it: no longer holds `id`
    kHold,     // from it: hold `id` for it
    kUnhold,
    kHandOver,  // to it: `objects`, the part `count`
    kHandedOver,
    kAbandoned,  // to it: a result that was stored for a dead owner
  };
  Kind kind{};
  ObjectId id = {};
  uint32_t count = 0;
  uint64_t token = 0;
  bool holds = false;
  bool gone = false;
  bool stored = false;
  uint32_t who = 0;
  std::vector<ObjectId> ids = {};
  wire::ObjectsClaimed claimed = {};
  std::vector<wire::KeptObject> objects = {};
  std::vector<Ref> refs = {};  // inside arguments, inside the result, inside the object
};

class Cluster;

/// A process as far as it deals with refs, after the ways of Runtime.
class Process : public OwnershipEffects {
 public:
  Process(Cluster& cluster, uint32_t self, uint32_t processes)
      : cluster_(cluster), self_(self), peers_(processes) {}

  // What the program does.
  void put();
  void submit(uint32_t worker);
  void end_some_task();
  void read_some();
  void drop_some();
  /// It will end in order: nothing new is begun, what runs is finished.
  void want_to_leave() { leaving_ = true; }
  bool leaving() const { return leaving_; }
  void leave_step();
  void handle(uint32_t from, const Message& message);
  bool drop_everything();  ///< false: there was nothing
  std::string leftovers() const;

  ObjectTable& table() { return table_; }
  bool owns(const ObjectId& id) const {
    const Entry* entry = table_.find(id);
    return entry != nullptr && entry->owner == nullptr;
  }
  uint32_t granted_to(const ObjectId& id, uint32_t process) {
    return owns(id) ? table_.granted_to(table_.find(id), &peers_[process]) : 0;
  }
  void send_claims();
  bool end_all_tasks();
  std::string waiting() const;
  bool alive = true;

 private:
  struct Task {  // submitted
    uint32_t worker;
    ObjectId result;
    std::vector<Entry*> pinned;
    bool holding = false;
  };
  struct Incoming {
    uint32_t from;
    uint64_t token;
    ObjectId result;
    std::vector<Entry*> locals;
    std::vector<Entry*> borrowed;
  };

  Peer* peer(uint32_t index) { return index == self_ ? nullptr : &peers_[index]; }
  uint32_t index(const Peer* peer) const { return static_cast<uint32_t>(peer - peers_.data()); }
  Ref ref_of(const Entry* entry) {
    return {entry->id, entry->owner == nullptr ? self_ : index(entry->owner)};
  }
  void send(Peer* to, Message message);
  std::vector<Entry*> pick_held(size_t most);
  Entry* create();
  std::vector<Ref> refs_of(const std::vector<Entry*>& entries);
  void hold(Entry* entry) {
    entry->handles.fetch_add(1);
    held_.push_back(entry);
  }
  Entry* adopt(const Ref& ref);
  void take_result(Entry* entry, const Message& message, uint32_t from, std::vector<Entry*>& foreign);
  void answer(Peer* to, Entry* entry);
  void resolve(Entry* entry, bool stored = false);
  void end_task(uint64_t token);
  void finish(Incoming task);
  void died(uint32_t who);
  void lose(Entry* entry);
  void claimed(const wire::ObjectsClaimed& answer);

  void register_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void release_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void pins_released(Peer* to, uint64_t token) override {
    send(to, {.kind = Message::Kind::kPinsReleased, .token = token});
  }
  void results_taken(Peer* to, uint64_t token) override {
    send(to, {.kind = Message::Kind::kResultsTaken, .token = token});
  }
  void erase_stored(const ObjectId& id) override { cluster_erase(id); }
  void cluster_erase(const ObjectId& id);
  void actor_out_of_scope(const ObjectId&) override {}
  void object_gone(Entry&) override {}

  Cluster& cluster_;
  const uint32_t self_;
  std::vector<Peer> peers_;
  Peer daemon_;
  ObjectTable table_{*this};
  std::vector<Entry*> held_;  // one handle each
  uint64_t next_object_ = 0;
  ActorId actor_ = numbered_actor(self_);
  uint64_t next_token_ = 0;
  bool leaving_ = false;
  bool offered_ = false;  // a part of the hand-over awaits its answer
  uint32_t parts_ = 0;
  std::map<uint32_t, std::vector<ObjectId>> claims_;  // of what the dead owned, until send_claims
  std::map<uint64_t, Task> tasks_;
  std::vector<Incoming> running_;
  std::map<std::pair<uint32_t, uint64_t>, std::vector<Entry*>> untaken_;
};

class Cluster : private node::AdoptionEffects {
 public:
  Cluster(uint64_t seed, uint32_t processes, bool deaths, OwnershipReport& report)
      : random(seed),
        report_(report),
        deaths_(deaths),
        daemon_(processes),
        adopted_(*this, seed % 3 == 0 ? kLittleRoom : node::AdoptedObjects::kInlineBytesMax) {
    for (uint32_t i = 0; i < processes; ++i) {
      processes_.push_back(std::make_unique<Process>(*this, i, processes));
      adopted_.process_came(i + 1, worker_of(i), first_sequence(i));
    }
    channels_.resize(processes + 1, std::vector<std::deque<Message>>(processes + 1));
    linked_.resize(processes);
    asked_.resize(processes);
  }

  /// Empty, or what went wrong.
  std::string run(uint32_t steps) {
    for (uint32_t i = 0; i < steps && failure.empty(); ++i) {
      step();
      check();
    }
    settle_down([](Process& process) { return process.end_all_tasks(); });
    for_living([&](uint32_t i, Process& process) {
      if (!process.waiting().empty())
        fail("process " + std::to_string(i) + " waits for ever: " + process.waiting());
    });
    settle_down([](Process& process) { return process.drop_everything(); });
    for_living([&](uint32_t i, Process& process) {
      if (!process.leftovers().empty())
        fail("process " + std::to_string(i) + " keeps " + process.leftovers());
    });
    if (adopted_.size() != 0) fail("the daemon keeps " + std::to_string(adopted_.size()) + " objects");
    if (!store_.empty()) fail(std::to_string(store_.size()) + " objects are left in the store");
    return failure;
  }

  void send(uint32_t from, uint32_t to, Message message) {
    if (!processes_[from]->alive) return;
    ++report_.messages;
    if (!linked_[from].contains(to)) {
      if (!processes_[to]->alive) {
        // It waits for a link that will be refused, and goes with that.
        if (asked_[from].insert(to).second) tell_daemon(from, {.kind = Message::Kind::kOpen, .who = to});
        return;
      }
      linked_[from].insert(to);
      linked_[to].insert(from);
    }
    if (processes_[to]->alive) channels_[from][to].push_back(std::move(message));
  }
  void tell_daemon(uint32_t from, Message message) {
    if (processes_[from]->alive) channels_[from][daemon_].push_back(std::move(message));
  }
  bool takes_tasks(uint32_t process) const { return !processes_[process]->leaving(); }
  /// It has handed all over.
  void end_in_order(uint32_t who) {
    ++report_.hand_overs;
    in_order_.insert(who);
    end(who);
  }
  void refused() { ++report_.refusals; }
  /// Whether `holder` may have lost the object: a process that died unwarned had it, and the holder was
  /// never seen on the owner's books (or the heir's) since it came to hold it.
  bool excused(uint32_t holder, const ObjectId& id) {
    if (secured_.contains({holder, id})) return false;
    for (uint32_t other : touched[id])
      if (other != owners.at(id) && !processes_[other]->alive && !in_order_.contains(other)) return true;
    return false;
  }
  bool ended_in_order(uint32_t who) const { return in_order_.contains(who); }
  bool nobody_died() const { return report_.deaths == 0; }
  void drain(uint32_t from, uint32_t to) {
    while (!channels_[from][to].empty() && failure.empty()) deliver(from, to);
  }
  uint32_t below(size_t n) { return static_cast<uint32_t>(random() % n); }
  /// Deaths of these processes may cost the object: who dies with the only registered hold takes it along.
  void touch(const ObjectId& id, uint32_t process) { touched[id].insert(process); }
  void touch_inside(const ObjectId& inner, const ObjectId& outer) {
    touched[inner].insert(touched[outer].begin(), touched[outer].end());
  }
  void store_object(const ObjectId& id, const std::vector<Ref>& refs) {
    wire::KeptObject object;
    object.id = id;
    object.stored = true;
    for (const Ref& ref : refs)
      object.contained.emplace_back(ref.id, wire::Address{worker_of(ref.owner), {}});
    store_[id] = std::move(object);
  }
  void erase(const ObjectId& id) { store_.erase(id); }
  void fail(std::string what) {
    if (failure.empty()) failure = std::move(what);
  }

  std::mt19937_64 random;
  std::map<ObjectId, std::set<uint32_t>> touched;
  std::map<ObjectId, size_t> born;
  std::map<ObjectId, uint32_t> owners;
  std::string failure;

 private:
  void step() {
    const uint32_t who = below(processes_.size());
    Process& process = *processes_[who];
    if (deaths_ && below(300) == 0 && process.alive && living() > 2) return kill(who);
    if (below(400) == 0 && process.alive && living() > 2) process.want_to_leave();
    if (!dying_.empty() && below(10) == 0) return bury_one();
    const uint32_t action = below(20);
    if (action >= 10) {
      deliver_one();
    } else if (process.alive) {
      if (process.leaving() && (action < 3 || (action >= 5 && action < 7))) return;
      if (action < 1)
        process.put();
      else if (action < 3)
        process.submit((who + 1 + below(processes_.size() - 1)) % processes_.size());
      else if (action < 5)
        process.end_some_task();
      else if (action < 7)
        process.read_some();
      else
        process.drop_some();
      process.send_claims();
      process.leave_step();
    }
  }
  size_t living() const {
    return std::count_if(processes_.begin(), processes_.end(), [](const auto& p) { return p->alive; });
  }
  template <class Visit>
  void for_living(Visit visit) {
    for (uint32_t i = 0; i < processes_.size() && failure.empty(); ++i)
      if (processes_[i]->alive) visit(i, *processes_[i]);
  }
  template <class Act>
  void settle_down(Act act) {
    for (bool busy = true; busy && failure.empty();) {
      busy = !dying_.empty();
      while (!dying_.empty()) bury_one();
      while (failure.empty() && deliver_one()) check();
      for_living([&](uint32_t, Process& process) {
        busy |= act(process);
        process.send_claims();
        process.leave_step();
      });
      check();
    }
  }
  void kill(uint32_t who) {
    ++report_.deaths;
    end(who);
  }
  void end(uint32_t who) {
    processes_[who]->alive = false;
    for (uint32_t from = 0; from <= daemon_; ++from) channels_[from][who].clear();
    dying_.push_back(who);
  }
  /// The daemon has noticed a death: as NodeDaemon::bury.
  void bury_one() {
    const size_t at = below(dying_.size());
    const uint32_t who = dying_[at];
    dying_.erase(dying_.begin() + static_cast<ptrdiff_t>(at));
    while (!channels_[who][daemon_].empty()) deliver(who, daemon_);
    std::set<ProcessNumber> linked;
    for (uint32_t other : linked_[who]) linked.insert(other + 1);
    std::vector<ObjectId> ids;
    for (const auto& [id, object] : store_) ids.push_back(id);
    std::map<ObjectId, std::vector<ObjectId>> inner = held_inside(who);
    adopted_.process_ended(who + 1, linked, ids);
    for (auto& [outer, held] : inner)
      if (adopted_.adopted(outer)) leads_to_[outer] = std::move(held);
    after_adoption();
    buried_.insert(who);
    for (uint32_t other = 0; other < daemon_; ++other)
      if (processes_[other]->alive && (linked_[who].contains(other) || refuse_later_[who].contains(other)))
        channels_[daemon_][other].push_back({.kind = Message::Kind::kDied, .who = who});
  }
  /// What this ended process's stored objects contain and must go on to keep: what was on its owner's books
  /// for it, or with the heir, or is stored itself.
  std::map<ObjectId, std::vector<ObjectId>> held_inside(uint32_t who) {
    std::map<ObjectId, std::vector<ObjectId>> out;
    for (const auto& [outer, object] : store_) {
      if (owners.at(outer) != who) continue;
      for (const auto& [inner, address] : object.contained) {
        const uint32_t owner = owners.at(inner);
        const bool sure = owner == who ? store_.contains(inner)
                          : processes_[owner]->alive
                              ? on_the_books(who, inner)
                              : adopted_.held(who + 1, inner) && !letting_go(who, inner);
        if (sure) out[outer].push_back(inner);
      }
    }
    return out;
  }
  bool on_the_books(uint32_t holder, const ObjectId& id) {
    const uint32_t owner = owners.at(id);
    uint32_t released = 0;
    for (const Message& message : channels_[holder][owner])
      if (message.kind == Message::Kind::kRelease && message.id == id) released += message.count;
    return processes_[owner]->granted_to(id, holder) > released;
  }
  bool letting_go(uint32_t holder, const ObjectId& id) const {
    return std::any_of(channels_[holder][daemon_].begin(), channels_[holder][daemon_].end(),
                       [&](const auto& m) { return m.kind == Message::Kind::kLetGo && m.id == id; });
  }
  /// A living owner has it, or it is with the heir or on its way there.
  bool is_there(const ObjectId& id) {
    const uint32_t owner = owners.at(id);
    if (processes_[owner]->alive) return processes_[owner]->owns(id);
    return adopted_.adopted(id) || (!buried_.contains(owner) && store_.contains(id));
  }
  void after_adoption() {
    if (!adopted_.take_settled()) return;
    std::erase_if(store_, [&](const auto& one) { return adopted_.is_stray(one.first); });
  }
  bool deliver_one() {
    std::vector<std::pair<uint32_t, uint32_t>> full;
    for (uint32_t from = 0; from < channels_.size(); ++from)
      for (uint32_t to = 0; to < channels_.size(); ++to)
        if (!channels_[from][to].empty() && (to == daemon_ || from == daemon_ || processes_[from]->alive))
          full.emplace_back(from, to);
    if (full.empty()) return false;
    auto [from, to] = full[below(full.size())];
    // What may come twice does, now and then.
    const Message& next = channels_[from][to].front();
    if (may_come_twice(next.kind) && below(4) == 0) channels_[from][to].push_front(Message(next));
    deliver(from, to);
    return true;
  }
  void deliver(uint32_t from, uint32_t to) {
    Message message = std::move(channels_[from][to].front());
    channels_[from][to].pop_front();
    if (to == daemon_) return daemon_handles(from, message);
    if (!processes_[to]->alive) return;
    processes_[to]->handle(from, message);
    processes_[to]->send_claims();
    processes_[to]->leave_step();
  }
  static bool may_come_twice(Message::Kind kind) {
    switch (kind) {
      case Message::Kind::kOpen:
      case Message::Kind::kDied:
      case Message::Kind::kLetGo:
      case Message::Kind::kAbandoned:
      case Message::Kind::kHandOver:
      case Message::Kind::kHandedOver:
      case Message::Kind::kPinsReleased:
      case Message::Kind::kResultsTaken: return true;
      default: return false;  // counted, on links that repeat nothing
    }
  }
  void daemon_handles(uint32_t from, const Message& message) {
    switch (message.kind) {
      case Message::Kind::kOpen:
        if (!buried_.contains(message.who)) {
          refuse_later_[message.who].insert(from);
        } else if (processes_[from]->alive) {
          channels_[daemon_][from].push_back({.kind = Message::Kind::kDied, .who = message.who});
        }
        return;
      case Message::Kind::kClaim: {
        ++report_.claims;
        Message answer{.kind = Message::Kind::kClaimed};
        answer.claimed = adopted_.claim(from + 1, {{worker_of(message.who), {}}, message.ids});
        report_.adopted += answer.claimed.kept.size();
        report_.lost += answer.claimed.lost.size();
        if (processes_[from]->alive) channels_[daemon_][from].push_back(std::move(answer));
        break;
      }
      case Message::Kind::kLetGo: adopted_.release(from + 1, {message.id}); break;
      case Message::Kind::kHandOver: {
        const bool kept = adopted_.hand_over(from + 1, message.count, message.objects);
        std::map<ObjectId, std::vector<ObjectId>> inner;
        for (const wire::KeptObject& object : message.objects)
          for (const auto& [id, owner] : object.contained) inner[object.id].push_back(id);
        if (kept)
          leads_to_.merge(inner);
        else
          std::erase_if(leads_to_, [&](const auto& one) { return owners.at(one.first) == from; });
        if (processes_[from]->alive)
          channels_[daemon_][from].push_back(
              {.kind = Message::Kind::kHandedOver, .count = message.count, .holds = kept});
        break;
      }
      case Message::Kind::kAbandoned:
        if (!adopted_.adopted(message.id)) store_.erase(message.id);
        return;
      default: return fail("the daemon was sent what is not its own");
    }
    after_adoption();
  }
  void hold(ProcessNumber owner, const ObjectId& id) override { tell(owner, Message::Kind::kHold, id); }
  void unhold(ProcessNumber owner, const ObjectId& id) override { tell(owner, Message::Kind::kUnhold, id); }
  void tell(ProcessNumber owner, Message::Kind kind, const ObjectId& id) {
    const auto to = static_cast<uint32_t>(owner - 1);
    if (processes_[to]->alive) channels_[daemon_][to].push_back({.kind = kind, .id = id});
  }
  void erase_stored(const ObjectId& id) override { store_.erase(id); }
  std::optional<wire::KeptObject> look(const ObjectId& id) override {
    auto found = store_.find(id);
    if (found == store_.end()) return std::nullopt;
    return found->second;
  }

  /// What a living process holds is in the table of its living owner; what is stored is in the store; what
  /// was handed over, and what the heir has, is with the heir, and so is what it contains.
  void check() {
    if (std::string wrong = adopted_.check(); !wrong.empty()) return fail("adopted: " + wrong);
    std::erase_if(leads_to_, [&](const auto& one) { return !adopted_.adopted(one.first); });
    for (auto& [outer, inner] : leads_to_) {
      // What only the memory of an owner held goes with him.
      std::erase_if(inner, [&](const ObjectId& id) {
        const uint32_t owner = owners.at(id);
        return !processes_[owner]->alive && !in_order_.contains(owner) && !is_there(id) &&
               !store_.contains(id);
      });
      for (const ObjectId& id : inner)
        if (!is_there(id))
          return fail("the heir keeps " + outer.hex() + ", but " + id.hex() + " inside it was freed");
    }
    std::set<std::pair<uint32_t, ObjectId>> secured;
    for_living([&](uint32_t holder, Process& process) {
      process.table().for_each([&](const Entry& entry) {
        const uint32_t owner = owners.at(entry.id);
        if (entry.owner == nullptr || (entry.handles.load() == 0 && entry.pins == 0)) return;
        if (secured_.contains({holder, entry.id}) ||
            (processes_[owner]->alive ? on_the_books(holder, entry.id)
                                      : adopted_.held(holder + 1, entry.id) && !letting_go(holder, entry.id)))
          secured.emplace(holder, entry.id);
      });
    });
    secured_ = std::move(secured);
    for_living([&](uint32_t holder, Process& process) {
      process.table().for_each([&](const Entry& entry) {
        touch(entry.id, holder);
        if (entry.handles.load() == 0 && entry.pins == 0) return;
        const uint32_t owner = owners.at(entry.id);
        if (entry.owner == nullptr && owner != holder) return;
        const bool stored = entry.state.load() == ObjectState::kStored;
        if (processes_[owner]->alive) {
          if (processes_[owner]->table().find(entry.id) != nullptr && (!stored || store_.contains(entry.id)))
            return;
        } else if (in_order_.contains(owner)) {
          if (adopted_.adopted(entry.id)) return;
        } else if (!stored || store_.contains(entry.id)) {
          return;  // the owner's death alone costs nothing that is stored
        }
        if (excused(holder, entry.id)) return;
        fail("process " + std::to_string(holder) + " holds " + entry.id.hex() + " of process " +
             std::to_string(owner) + (processes_[owner]->alive ? "" : ", which has died") + "; it was freed");
      });
    });
  }

  OwnershipReport& report_;
  const bool deaths_;
  const uint32_t daemon_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::vector<std::deque<Message>>> channels_;  // [from][to]; the last one is the daemon
  std::vector<std::set<uint32_t>> linked_, asked_;
  std::map<uint32_t, std::set<uint32_t>> refuse_later_;
  std::vector<uint32_t> dying_;  // dead, and the daemon has not noticed
  std::set<uint32_t> buried_;
  std::set<uint32_t> in_order_;  // ended so
  std::map<ObjectId, wire::KeptObject> store_;
  static constexpr uint64_t kLittleRoom = 2;
  node::AdoptedObjects adopted_;
  std::set<std::pair<uint32_t, ObjectId>> secured_;     // holds that were on the books at some time
  std::map<ObjectId, std::vector<ObjectId>> leads_to_;  // what the heir keeps, and what it contains
};

void Process::cluster_erase(const ObjectId& id) { cluster_.erase(id); }

void Process::send(Peer* to, Message message) {
  if (to->state != Peer::State::kDead) cluster_.send(self_, index(to), std::move(message));
}

void Process::register_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state == Peer::State::kDead)
    claims_[index(owner)].push_back(id);
  else
    send(owner, {.kind = Message::Kind::kRegister, .id = id, .count = count});
}

void Process::release_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state != Peer::State::kDead)
    return send(owner, {.kind = Message::Kind::kRelease, .id = id, .count = count});
  send_claims();  // in order
  cluster_.tell_daemon(self_, {.kind = Message::Kind::kLetGo, .id = id});
}

void Process::send_claims() {
  for (auto& [who, ids] : std::exchange(claims_, {}))
    cluster_.tell_daemon(self_, {.kind = Message::Kind::kClaim, .who = who, .ids = std::move(ids)});
}

std::vector<Entry*> Process::pick_held(size_t most) {
  std::vector<Entry*> picked;
  for (size_t i = cluster_.below(most + 1); i > 0 && !held_.empty(); --i)
    picked.push_back(held_[cluster_.below(held_.size())]);
  return picked;
}

Entry* Process::create() {
  // Every other object is of an actor's call: its id tells its owner in another way.
  const uint64_t number = next_object_++;
  const TaskId task = number % 2 != 0 ? TaskId::actor_call(first_sequence(self_) + number, actor_)
                                      : TaskId::normal(number, worker_of(self_), JobId{});
  const ObjectId id = ObjectId::of(task, 1);
  cluster_.born.emplace(id, cluster_.born.size());
  cluster_.owners.emplace(id, self_);
  return table_.create(id);
}

void Process::put() {
  std::vector<Entry*> inner = pick_held(3);
  Entry* entry = create();
  hold(entry);
  for (Entry* one : inner) cluster_.touch_inside(one->id, entry->id);
  table_.contain(entry, inner);
  entry->in_local_store = cluster_.below(2) == 0;
  if (entry->in_local_store) cluster_.store_object(entry->id, refs_of(inner));
  entry->state = entry->in_local_store ? ObjectState::kStored : ObjectState::kInline;
}

std::vector<Ref> Process::refs_of(const std::vector<Entry*>& entries) {
  std::vector<Ref> refs;
  for (const Entry* entry : entries) refs.push_back(ref_of(entry));
  return refs;
}

void Process::submit(uint32_t worker) {
  if (peers_[worker].state == Peer::State::kDead || !cluster_.takes_tasks(worker)) return;
  std::vector<Entry*> arguments = pick_held(3);
  Entry* result = create();
  Task task{worker, result->id, std::move(arguments)};
  Message push{.kind = Message::Kind::kPush, .id = task.result, .token = next_token_};
  for (Entry* entry : task.pinned) {
    table_.pin(entry);
    push.refs.push_back(ref_of(entry));
  }
  hold(result);
  send(peer(worker), std::move(push));
  tasks_.emplace(next_token_++, std::move(task));
}

Entry* Process::adopt(const Ref& ref) {
  Entry* entry = table_.intern(ref.id, peer(ref.owner));
  if (entry == nullptr) {  // ours, and freed
    entry = table_.create(ref.id);
    entry->state = ObjectState::kInline;
    if (cluster_.touched[ref.id].empty()) cluster_.fail("an unknown object came");
  }
  entry->handles.fetch_add(1);
  return entry;
}

void Process::read_some() {
  if (held_.empty()) return;
  Entry* outer = held_[cluster_.below(held_.size())];
  if (!outer->ready()) {
    if (outer->owner == nullptr || outer->asked) return;
    outer->asked = true;
    if (outer->owner->state == Peer::State::kDead) return table_.claim(outer);
    return send(outer->owner, {.kind = Message::Kind::kGet, .id = outer->id});
  }
  if (!outer->contained) return;
  std::vector<Entry*> unknown;
  for (Entry* inner : *outer->contained) {
    cluster_.touch_inside(inner->id, outer->id);
    Entry* entry = adopt(ref_of(inner));
    held_.push_back(entry);
    if (entry->owner != nullptr && entry->grants_in == 0) unknown.push_back(entry);
  }
  if (unknown.empty()) return;
  table_.pin(outer);
  if (table_.register_then(unknown, outer->owner, {Obligation::Kind::kUnpin, nullptr, 0, outer->id}))
    table_.unpin(outer);
}

void Process::drop_some() {
  if (held_.empty()) return;
  std::swap(held_[cluster_.below(held_.size())], held_.back());
  Entry* entry = held_.back();
  held_.pop_back();
  table_.drop_handle(entry);
}

void Process::end_some_task() {
  if (running_.empty()) return;
  std::swap(running_[cluster_.below(running_.size())], running_.back());
  Incoming task = std::move(running_.back());
  running_.pop_back();
  finish(std::move(task));
}

void Process::finish(Incoming task) {
  // The result holds something of the arguments, of what the process kept, or new.
  std::vector<Entry*> contained = pick_held(2);
  for (Entry* entry : task.locals)
    if (cluster_.below(3) == 0) contained.push_back(entry);
  // An object that contains itself, by whatever way, is never freed: counting does not see cycles.
  std::erase_if(contained,
                [&](Entry* entry) { return cluster_.born[entry->id] >= cluster_.born[task.result]; });
  for (Entry* entry : contained) table_.pin(entry);
  for (Entry* entry : task.locals) {
    if (cluster_.below(3) == 0)
      held_.push_back(entry);  // an actor keeps it
    else
      table_.drop_handle(entry);
  }
  std::vector<Entry*> kept;
  for (Entry* entry : task.borrowed) {
    if (entry->handles.load() == 0 && entry->pins == 1)
      table_.unpin(entry);
    else
      kept.push_back(entry);
  }
  Peer* from = peer(task.from);
  Message done{.kind = Message::Kind::kDone, .token = task.token};
  done.stored = cluster_.below(2) == 0;
  if (done.stored) cluster_.store_object(task.result, refs_of(contained));
  if (done.stored && from->state == Peer::State::kDead)
    cluster_.tell_daemon(self_, {.kind = Message::Kind::kAbandoned, .id = task.result});
  done.holds = !kept.empty() &&
               !table_.register_then(kept, from, {Obligation::Kind::kPinsReleased, from, task.token, {}});
  for (Entry* entry : kept) table_.unpin(entry);
  for (Entry* entry : contained) done.refs.push_back(ref_of(entry));
  for (Entry* entry : contained) {
    if (from->state == Peer::State::kDead) {
      table_.unpin(entry);
    } else if (entry->owner == nullptr) {
      table_.grant(entry, from, 1);
      table_.unpin(entry);
    } else if (entry->owner != from) {
      untaken_[{task.from, task.token}].push_back(entry);
    }
  }
  send(from, done);
  if (from->state != Peer::State::kDead)
    for (Entry* entry : contained)
      if (entry->owner == from) table_.unpin(entry);
}

void Process::take_result(Entry* entry, const Message& message, uint32_t from, std::vector<Entry*>& foreign) {
  std::vector<Entry*> inner;
  for (const Ref& ref : message.refs) {
    Entry* found = table_.intern(ref.id, peer(ref.owner));
    if (found == nullptr) continue;
    if (entry != nullptr) cluster_.touch_inside(ref.id, entry->id);
    table_.pin(found);
    if (ref.owner == from) table_.received_grant(found, 1);
    inner.push_back(found);
    if (ref.owner != self_ && ref.owner != from) foreign.push_back(found);
  }
  if (entry != nullptr)
    table_.contain(entry, inner);
  else
    foreign.clear();
  for (Entry* found : inner) table_.unpin(found);
  if (entry == nullptr) return;
  entry->in_local_store = message.stored && entry->owner == nullptr;
  resolve(entry, message.stored);
}

void Process::resolve(Entry* entry, bool stored) {
  entry->state = stored ? ObjectState::kStored : ObjectState::kInline;
  if (!entry->remote_waiters) return;
  auto waiters = std::move(entry->remote_waiters);
  for (Peer* waiter : *waiters) answer(waiter, entry);
}

void Process::answer(Peer* to, Entry* entry) {
  if (to->state == Peer::State::kDead) return;
  Message value{.kind = Message::Kind::kValue, .id = entry->id};
  value.stored = entry->state == ObjectState::kStored;
  if (entry->contained)
    for (Entry* inner : *entry->contained) {
      value.refs.push_back(ref_of(inner));
      if (inner->owner == nullptr) table_.grant(inner, to, 1);
    }
  send(to, value);
}

void Process::end_task(uint64_t token) {
  auto found = tasks_.find(token);
  std::vector<Entry*> pinned = std::move(found->second.pinned);
  tasks_.erase(found);
  for (Entry* entry : pinned) table_.unpin(entry);
}

void Process::handle(uint32_t from, const Message& message) {
  Peer* sender = peer(from);
  switch (message.kind) {
    case Message::Kind::kRegister: {
      Entry* entry = table_.find(message.id);
      const bool ours = entry != nullptr && entry->owner == nullptr;
      if (ours) table_.grant(entry, sender, message.count);
      return send(sender, {.kind = Message::Kind::kRegistered, .id = message.id, .gone = !ours});
    }
    case Message::Kind::kRegistered: {
      Entry* entry = table_.find(message.id);
      if (message.gone && entry != nullptr && entry->grants_in > 0 && table_.last_answer(message.id))
        --entry->grants_in;
      return table_.registered(message.id);
    }
    case Message::Kind::kRelease:
      if (!table_.take_back(message.id, sender, message.count) && cluster_.nobody_died())
        cluster_.fail("more came back than was granted");
      return;
    case Message::Kind::kPinsReleased:
      if (tasks_.contains(message.token)) end_task(message.token);
      return;
    case Message::Kind::kResultsTaken: {
      auto node = untaken_.extract({from, message.token});
      if (!node.empty())
        for (Entry* entry : node.mapped()) table_.unpin(entry);
      return;
    }
    case Message::Kind::kPush: {
      Incoming task{from, message.token, message.id, {}, {}};
      for (const Ref& ref : message.refs) {
        Entry* entry = adopt(ref);
        task.locals.push_back(entry);
        if (entry->owner != nullptr && entry->grants_in == 0) {
          table_.pin(entry);
          task.borrowed.push_back(entry);
        }
      }
      running_.push_back(std::move(task));
      return;
    }
    case Message::Kind::kDone: {
      if (!tasks_.contains(message.token)) return;
      std::vector<Entry*> foreign;
      const bool any_foreign = std::any_of(message.refs.begin(), message.refs.end(), [&](const Ref& ref) {
        return ref.owner != self_ && ref.owner != from;
      });
      Entry* result = table_.find(tasks_.at(message.token).result);
      if (result == nullptr && message.stored) cluster_.erase(tasks_.at(message.token).result);
      take_result(result, message, from, foreign);
      if (any_foreign &&
          table_.register_then(foreign, sender, {Obligation::Kind::kResultsTaken, sender, message.token, {}}))
        results_taken(sender, message.token);
      if (message.holds)
        tasks_.at(message.token).holding = true;
      else
        end_task(message.token);
      return;
    }
    case Message::Kind::kGet: {
      Entry* entry = table_.find(message.id);
      if (entry == nullptr || entry->owner != nullptr)
        return send(sender, {.kind = Message::Kind::kValue, .id = message.id, .gone = true});
      if (entry->ready()) return answer(sender, entry);
      if (!entry->remote_waiters) entry->remote_waiters = std::make_unique<std::vector<Peer*>>();
      entry->remote_waiters->push_back(sender);
      return;
    }
    case Message::Kind::kValue: {
      Entry* entry = table_.find(message.id);
      if (entry != nullptr && (entry->owner != sender || entry->ready())) entry = nullptr;
      if (message.gone) {
        if (entry != nullptr) lose(entry);
        return;
      }
      std::vector<Entry*> foreign;
      take_result(entry, message, from, foreign);
      if (foreign.empty()) return;
      table_.pin(entry);
      if (table_.register_then(foreign, sender, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
        table_.unpin(entry);
      return;
    }
    case Message::Kind::kDied:
      if (peers_[message.who].state != Peer::State::kDead) {
        cluster_.drain(message.who, self_);  // what it wrote before is read first
        died(message.who);
      }
      claims_[message.who];  // the daemon waits for an answer, though it be empty
      return;
    case Message::Kind::kClaimed: return claimed(message.claimed);
    case Message::Kind::kHandedOver:
      if (!offered_ || message.count != parts_) return;
      offered_ = false;
      if (message.holds) return;  // leave_step goes on
      cluster_.refused();
      leaving_ = false;
      return table_.take_home();
    case Message::Kind::kHandOver:
    case Message::Kind::kHold:
      if (Entry* entry = table_.find(message.id); entry != nullptr && entry->owner == nullptr)
        table_.grant(entry, &daemon_, 1);
      return;
    case Message::Kind::kUnhold: table_.take_back(message.id, &daemon_, 1); return;
    case Message::Kind::kOpen:
    case Message::Kind::kClaim:
    case Message::Kind::kLetGo:
    case Message::Kind::kAbandoned: return;  // the daemon's
  }
}

void Process::lose(Entry* entry) {
  entry->is_error = true;
  resolve(entry);
}

/// After Runtime::objects_claimed.
void Process::claimed(const wire::ObjectsClaimed& answer) {
  for (const wire::KeptObject& kept : answer.kept) {
    Entry* entry = table_.find(kept.id);
    if (entry != nullptr && !entry->ready() && table_.last_answer(kept.id)) {
      table_.pin(entry);
      std::vector<Entry*> inner;
      for (const auto& [id, owner] : kept.contained) {
        cluster_.touch_inside(id, kept.id);
        if (Entry* found = table_.intern(id, peer(number_of(owner.worker)))) inner.push_back(found);
      }
      table_.contain(entry, inner);
      resolve(entry, kept.stored);
      if (table_.register_then(inner, entry->owner, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
        table_.unpin(entry);
    }
    table_.registered(kept.id);
  }
  for (const ObjectId& id : answer.lost) {
    Entry* entry = table_.find(id);
    if (entry != nullptr && table_.last_answer(id)) {
      if (!entry->ready() && cluster_.ended_in_order(number_of(answer.owner.worker)) &&
          !cluster_.excused(self_, id))
        cluster_.fail("process " + std::to_string(self_) + " was refused " + id.hex() +
                      ", which its owner had handed over");
      table_.pin(entry);
      entry->grants_in = 0;
      if (!entry->ready()) lose(entry);
      table_.unpin(entry);
    }
    table_.registered(id);
  }
}

/// After Runtime::leave_step.
void Process::leave_step() {
  if (!alive || !leaving_ || offered_) return;
  if (!running_.empty() || !tasks_.empty() || !untaken_.empty() || !table_.may_give()) return;
  std::vector<Entry*> given = table_.give(2, 3);
  if (given.empty()) return cluster_.end_in_order(self_);
  Message message{.kind = Message::Kind::kHandOver, .count = ++parts_};
  for (Entry* entry : given) {
    wire::KeptObject kept;
    kept.id = entry->id;
    kept.stored = entry->state.load() == ObjectState::kStored;
    if (!kept.stored) kept.value = "v";
    if (entry->contained)
      for (const Ref& ref : refs_of(*entry->contained))
        kept.contained.emplace_back(ref.id, wire::Address{worker_of(ref.owner), {}});
    message.objects.push_back(std::move(kept));
  }
  offered_ = true;
  cluster_.tell_daemon(self_, std::move(message));
}

void Process::died(uint32_t who) {
  peers_[who].state = Peer::State::kDead;
  std::vector<uint64_t> ended;
  for (auto& [token, task] : tasks_)
    if (task.worker == who) ended.push_back(token);
  for (uint64_t token : ended) {
    if (Entry* entry = table_.find(tasks_.at(token).result); entry != nullptr && !entry->ready())
      resolve(entry);
    end_task(token);
  }
  for (auto next = untaken_.begin(); next != untaken_.end();) {
    if (next->first.first != who) {
      ++next;
      continue;
    }
    std::vector<Entry*> held = std::move(next->second);
    next = untaken_.erase(next);
    for (Entry* entry : held) table_.unpin(entry);
  }
  table_.peer_died(&peers_[who]);
}

bool Process::end_all_tasks() {
  bool any = !running_.empty();
  while (!running_.empty()) end_some_task();
  return any;
}

std::string Process::waiting() const {
  std::string out;
  const_cast<ObjectTable&>(table_).for_each([&](const Entry& entry) {
    if (entry.asked && !entry.ready()) out += entry.id.hex() + " ";
  });
  return out;
}

bool Process::drop_everything() {
  bool any = !held_.empty() || !running_.empty();
  end_all_tasks();
  while (!held_.empty()) drop_some();
  return any;
}

std::string Process::leftovers() const {
  if (table_.size() + tasks_.size() + untaken_.size() == 0) return "";
  return std::to_string(table_.size()) + " objects, " + std::to_string(tasks_.size()) + " tasks, " +
         std::to_string(untaken_.size()) + " results that were not taken";
}

}  // namespace

OwnershipReport run_ownership(uint64_t seed) {
  OwnershipReport report;
  const bool deaths = seed % 5 != 0;
  const uint32_t processes = (deaths ? 3 : 2) + static_cast<uint32_t>(seed % 4);
  report.problem = Cluster(seed, processes, deaths, report).run(2000);
  return report;
}

}  // namespace skate::sim
