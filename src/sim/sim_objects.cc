#include "sim/sim_objects.h"

#include <algorithm>

#include "rt/sleep.h"

namespace skate::sim {

using worker::Entry;
using worker::ObjectState;
using Kind = Message::Kind;

namespace {
constexpr uint64_t kLittleRoom = 2;
constexpr uint64_t kLinkDelayNs = 2'000'000, kNoticeDelayNs = 10'000'000;

/// On links that repeat nothing; what is counted relies on that.
bool may_come_twice(Kind kind) {
  switch (kind) {
    case Kind::kOpen:
    case Kind::kDied:
    case Kind::kLetGo:
    case Kind::kAbandoned:
    case Kind::kHandOver:
    case Kind::kHandedOver:
    case Kind::kPinsReleased:
    case Kind::kResultsTaken:
    case Kind::kDemand:
    case Kind::kLeaseReturn:
    case Kind::kRecall: return true;
    default: return false;
  }
}

bool is_about_leases(Kind kind) {
  return kind == Kind::kDemand || kind == Kind::kLeaseReturn || kind == Kind::kRecall || kind == Kind::kGrant;
}
}  // namespace

SimObjects::SimObjects(rt::SimLoop& loop, const NodeId& node, SimDaemon& daemon, SimObjectsOptions options,
                       ObjectCounts& counts)
    : loop_(loop),
      node_(node),
      daemon_(daemon),
      options_(options),
      counts_(counts),
      adopted_(*this, options.little_room ? kLittleRoom : node::AdoptedObjects::kInlineBytesMax),
      tasks_(loop) {}

SimObjects::~SimObjects() { tasks_.stop(); }

void SimObjects::fail(std::string what) {
  if (problem_.empty()) problem_ = std::move(what);
}

// Processes.

SimProcess& SimObjects::start(ProcessNumber number, const JobId& job, bool is_driver) {
  Life& life = lives_[number];
  life.process = std::make_unique<SimProcess>(*this, number, job);
  adopted_.process_came(number, address_of(node_, number).worker, first_sequence(number));
  life.process->start(is_driver);
  return *life.process;
}

SimProcess* SimObjects::find(ProcessNumber number) {
  return runs(number) ? lives_.at(number).process.get() : nullptr;
}

bool SimObjects::runs(ProcessNumber number) const {
  const auto life = lives_.find(number);
  return life != lives_.end() && life->second.alive;
}

bool SimObjects::is_known(ProcessNumber number) const {
  const auto life = lives_.find(number);
  return life != lives_.end() && life->second.process != nullptr;
}

void SimObjects::end(ProcessNumber number, wire::DeathKind kind) { end(number, kind, false); }

void SimObjects::end(ProcessNumber number, wire::DeathKind kind, bool in_order) {
  Life& life = lives_.at(number);
  if (!life.alive) return;
  life.alive = false;
  life.in_order = in_order;
  life.kind = kind;
  life.process->stop();
  if (in_order) {
    ++counts_.hand_overs;
  } else if (life.process->has_dealt()) {
    ++counts_.deaths;
    somebody_died_ = true;
  }
  std::erase_if(links_, [&](const auto& one) { return one.first.second == number; });
  tasks_.spawn(notice_end(number));
}

rt::Task<void> SimObjects::notice_end(ProcessNumber number) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(kNoticeDelayNs)));
  bury(number);
  daemon_.buried(number, lives_.at(number).kind);
  check();
}

/// The daemon has noticed: as NodeDaemon::end_process and bury.
void SimObjects::bury(ProcessNumber number) {
  drain(number, kDaemon);
  Life& life = lives_.at(number);
  std::vector<ObjectId> ids;
  for (const auto& [id, object] : store_) ids.push_back(id);
  std::map<ObjectId, std::vector<ObjectId>> inner = held_inside(number);
  adopted_.process_ended(number, life.linked, ids);
  for (auto& [outer, held] : inner)
    if (adopted_.adopted(outer)) leads_to_[outer] = std::move(held);
  after_adoption();
  life.process.reset();
  std::set<ProcessNumber> told = life.linked;
  told.insert(life.refuse_later.begin(), life.refuse_later.end());
  for (ProcessNumber other : told) tell(other, {.kind = Kind::kDied, .who = number});
}

/// What this ended process's stored objects contain and must go on to keep: what was on its owner's books
/// for it, or with the heir, or is stored itself.
std::map<ObjectId, std::vector<ObjectId>> SimObjects::held_inside(ProcessNumber who) {
  std::map<ObjectId, std::vector<ObjectId>> out;
  for (const auto& [outer, object] : store_) {
    if (known_.at(outer).owner != who) continue;
    for (const auto& [inner, address] : object.contained)
      if (known_.at(inner).owner == who ? store_.contains(inner) : on_the_books(who, inner))
        out[outer].push_back(inner);
  }
  return out;
}

// Links.

void SimObjects::link(ProcessNumber one, ProcessNumber other) {
  lives_.at(one).linked.insert(other);
  lives_.at(other).linked.insert(one);
}

void SimObjects::send(ProcessNumber from, ProcessNumber to, Message message) {
  Life& sender = lives_.at(from);
  if (!sender.alive) return;
  ++counts_.messages;
  if (!sender.linked.contains(to)) {
    if (!is_alive(to)) {
      // It waits for a link that will be refused, and goes with that.
      if (sender.asked.insert(to).second) tell_daemon(from, {.kind = Kind::kOpen, .who = to});
      return;
    }
    link(from, to);
  }
  post(from, to, std::move(message));
}

void SimObjects::post(ProcessNumber from, ProcessNumber to, Message message) {
  if ((from != kDaemon && !is_alive(from)) || (to != kDaemon && !is_alive(to))) return;
  links_[{from, to}].push_back(std::move(message));
  tasks_.spawn(carry(from, to));
}

rt::Task<void> SimObjects::carry(ProcessNumber from, ProcessNumber to) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(kLinkDelayNs)));
  const auto found = links_.find({from, to});
  if (found == links_.end()) co_return;  // it was read before, or its reader has ended
  std::deque<Message>& link = found->second;
  if (may_come_twice(link.front().kind) && loop_.random().chance(0.25)) {
    link.push_front(Message(link.front()));
    tasks_.spawn(carry(from, to));
  }
  const bool matters = !is_about_leases(link.front().kind);
  deliver(from, to);
  if (matters) check();
}

void SimObjects::drain(ProcessNumber from, ProcessNumber to) {
  while (links_.contains({from, to})) deliver(from, to);
}

void SimObjects::deliver(ProcessNumber from, ProcessNumber to) {
  const auto found = links_.find({from, to});
  Message message = std::move(found->second.front());
  found->second.pop_front();
  if (found->second.empty()) links_.erase(found);
  if (to == kDaemon) return daemon_handles(from, message);
  SimProcess& process = *lives_.at(to).process;
  process.handle(from, message);
  process.flush();
}

// The daemon.

void SimObjects::daemon_handles(ProcessNumber from, const Message& message) {
  switch (message.kind) {
    case Kind::kOpen:
      if (is_buried(message.who))
        tell(from, {.kind = Kind::kDied, .who = message.who});
      else
        lives_.at(message.who).refuse_later.insert(from);
      return;
    case Kind::kClaim: {
      Message answer{.kind = Kind::kClaimed};
      answer.claimed = adopted_.claim(from, {address_of(node_, message.who), message.ids});
      counts_.adopted += answer.claimed.kept.size();
      counts_.lost += answer.claimed.lost.size();
      tell(from, std::move(answer));
      break;
    }
    case Kind::kLetGo: adopted_.release(from, {message.id}); break;
    case Kind::kHandOver: {
      const bool kept = adopted_.hand_over(from, message.count, message.objects);
      std::map<ObjectId, std::vector<ObjectId>> inner;
      for (const wire::KeptObject& object : message.objects)
        for (const auto& [id, owner] : object.contained) inner[object.id].push_back(id);
      if (kept)
        leads_to_.merge(inner);
      else
        forget_given(from);
      tell(from, {.kind = Kind::kHandedOver, .count = message.count, .holds = kept});
      break;
    }
    case Kind::kExitDeclined:
      adopted_.withdraw(from);
      forget_given(from);
      daemon_.on_message(from, message);
      break;
    case Kind::kAbandoned:
      if (!adopted_.adopted(message.id)) store_.erase(message.id);
      return;
    default: return daemon_.on_message(from, message);
  }
  after_adoption();
}

void SimObjects::forget_given(ProcessNumber giver) {
  std::erase_if(leads_to_, [&](const auto& one) { return known_.at(one.first).owner == giver; });
}

void SimObjects::after_adoption() {
  if (adopted_.take_settled())
    std::erase_if(store_, [&](const auto& one) { return adopted_.is_stray(one.first); });
  if (std::string wrong = adopted_.check(); !wrong.empty()) fail("adopted: " + wrong);
}

void SimObjects::hold(ProcessNumber owner, const ObjectId& id) {
  tell(owner, {.kind = Kind::kHold, .id = id});
}
void SimObjects::unhold(ProcessNumber owner, const ObjectId& id) {
  tell(owner, {.kind = Kind::kUnhold, .id = id});
}

std::optional<wire::KeptObject> SimObjects::look(const ObjectId& id) {
  const auto found = store_.find(id);
  if (found == store_.end()) return std::nullopt;
  return found->second;
}

// Objects.

void SimObjects::made(const ObjectId& id, ProcessNumber owner) {
  known_[id].owner = owner;
  known_[id].touched.insert(owner);
}

void SimObjects::store(const ObjectId& id, const std::vector<Ref>& refs) {
  wire::KeptObject& object = store_[id] = {};
  object.id = id;
  object.stored = true;
  object.contained = refs;
}

void SimObjects::contains(const ObjectId& outer, const ObjectId& inner) {
  known_.at(outer).inside.push_back(inner);
  touch_inside(outer, inner);
}

void SimObjects::touch_inside(const ObjectId& outer, const ObjectId& inner) {
  const std::set<ProcessNumber>& those = known_.at(outer).touched;
  known_.at(inner).touched.insert(those.begin(), those.end());
}

bool SimObjects::reaches(const ObjectId& from, const ObjectId& to) const {
  std::unordered_set<ObjectId> seen{from};
  std::vector<ObjectId> stack{from};
  while (!stack.empty()) {
    const ObjectId next = stack.back();
    stack.pop_back();
    if (next == to) return true;
    for (const ObjectId& inner : known_.at(next).inside)
      if (seen.insert(inner).second) stack.push_back(inner);
  }
  return false;
}

// Checks.

/// The owner, or the heir, knows of this hold.
bool SimObjects::on_the_books(ProcessNumber holder, const ObjectId& id) {
  const ProcessNumber owner = known_.at(id).owner;
  const bool owner_lives = is_alive(owner);
  uint64_t released = 0;
  if (const auto link = links_.find({holder, owner_lives ? owner : kDaemon}); link != links_.end())
    for (const Message& message : link->second) {
      if (message.id != id) continue;
      if (message.kind == Kind::kLetGo && !owner_lives) return false;
      if (message.kind == Kind::kRelease) released += message.count;
    }
  if (!owner_lives) return adopted_.held(holder, id);
  return lives_.at(owner).process->granted_to(id, holder) > released;
}

/// A living owner has it, or it is with the heir or on its way there.
bool SimObjects::is_there(const ObjectId& id) {
  const ProcessNumber owner = known_.at(id).owner;
  if (is_alive(owner)) return lives_.at(owner).process->owns(id);
  return adopted_.adopted(id) || (!is_buried(owner) && store_.contains(id));
}

/// Whether `holder` may have lost the object: a process that died unwarned had it, and the holder was
/// never seen on the owner's books (or the heir's) since it came to hold it.
bool SimObjects::excused(ProcessNumber holder, const ObjectId& id) const {
  if (lives_.at(holder).secured.contains(id)) return false;
  const Known& known = known_.at(id);
  return std::any_of(known.touched.begin(), known.touched.end(), [&](ProcessNumber other) {
    const Life& life = lives_.at(other);
    return other != known.owner && !life.alive && !life.in_order;
  });
}

void SimObjects::refused(ProcessNumber holder, ProcessNumber owner, const ObjectId& id) {
  if (lives_.at(owner).in_order && !excused(holder, id))
    fail("process " + std::to_string(holder) + " was refused " + id.hex() +
         ", which its owner had handed over");
}

void SimObjects::check() {
  if (!problem_.empty()) return;
  std::erase_if(leads_to_, [&](const auto& one) { return !adopted_.adopted(one.first); });
  for (auto& [outer, inner] : leads_to_) {
    // What only the memory of an owner held goes with him.
    std::erase_if(inner, [&](const ObjectId& id) {
      const Life& owner = lives_.at(known_.at(id).owner);
      return !owner.alive && !owner.in_order && !is_there(id) && !store_.contains(id);
    });
    for (const ObjectId& id : inner)
      if (!is_there(id))
        return fail("the heir keeps " + outer.hex() + ", but " + id.hex() + " inside it was freed");
  }
  for (auto& [holder, life] : lives_)
    if (life.alive) check_held(holder, life);
}

void SimObjects::check_held(ProcessNumber holder, Life& life) {
  life.process->table().for_each([&](const Entry& entry) {
    if (entry.handles.load() == 0 && entry.pins == 0) return;
    const ProcessNumber number = entry.owner == nullptr ? holder : number_of(entry.owner->address);
    if (number != holder && !life.secured.contains(entry.id)) {
      known_.at(entry.id).touched.insert(holder);
      if (on_the_books(holder, entry.id)) life.secured.insert(entry.id);
    }
    const Life& owner = lives_.at(number);
    const bool stored = entry.state.load() == ObjectState::kStored;
    if (owner.alive) {
      if (owner.process->table().find(entry.id) != nullptr && (!stored || store_.contains(entry.id))) return;
    } else if (owner.in_order) {
      if (adopted_.adopted(entry.id)) return;
    } else if (!stored || store_.contains(entry.id)) {
      return;  // the owner's death alone costs nothing that is stored
    }
    if (excused(holder, entry.id)) return;
    fail("process " + std::to_string(holder) + " holds " + entry.id.hex() + " of process " +
         std::to_string(number) + (owner.alive ? "" : ", which has died") + "; it was freed");
  });
}

std::string SimObjects::waiting() {
  for (auto& [number, life] : lives_) {
    if (!life.alive) continue;
    if (const std::string what = life.process->waiting(); !what.empty())
      return "process " + std::to_string(number) + " waits for ever: " + what;
  }
  return "";
}

std::string SimObjects::leftovers() const {
  for (const auto& [number, life] : lives_) {
    if (life.process == nullptr) continue;
    if (!life.alive) return "process " + std::to_string(number) + " is dead and not buried";
    if (const std::string what = life.process->leftovers(); !what.empty())
      return "process " + std::to_string(number) + " keeps " + what;
  }
  if (adopted_.size() != 0) return "the daemon keeps " + std::to_string(adopted_.size()) + " objects";
  if (!store_.empty()) return std::to_string(store_.size()) + " objects are left in the store";
  return "";
}

}  // namespace skate::sim
