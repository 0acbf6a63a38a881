#include "node/adoption/adopted_objects.h"

#include <unordered_set>

#include "base/assert.h"

namespace skate::node {

namespace {
constexpr size_t kEndedKept = 10'000;
constexpr size_t kOriginBytes = 11;

uint64_t sequence_of(const ObjectId& id) {
  uint64_t sequence = 0;
  std::memcpy(&sequence, id.data(), sizeof sequence);
  return sequence;
}
}  // namespace

std::string AdoptedObjects::origin_of(const WorkerId& id) const {
  return std::string(reinterpret_cast<const char*>(id.data()), kOriginBytes);
}

void AdoptedObjects::process_came(ProcessNumber number, const WorkerId& id, uint64_t first_sequence) {
  known_[id] = {number, first_sequence, true};
  living_[number] = id;
  by_origin_[origin_of(id)] = id;
  by_sequence_[first_sequence] = id;
}

bool AdoptedObjects::sequences_free(uint64_t first_sequence) const {
  // Kept apart from zero and from the end, so that no range wraps around.
  if (first_sequence < wire::kSequencesMax || first_sequence > ~uint64_t{0} - 2 * wire::kSequencesMax)
    return false;
  auto next = by_sequence_.lower_bound(first_sequence - wire::kSequencesMax + 1);
  return next == by_sequence_.end() || next->first >= first_sequence + wire::kSequencesMax;
}

bool AdoptedObjects::held(ProcessNumber holder, const ObjectId& id) const {
  auto found = held_by_.find(holder);
  return found != held_by_.end() && found->second.contains(id);
}

std::optional<WorkerId> AdoptedObjects::owner_of(const ObjectId& id) const {
  const TaskId task = id.task();
  if (task.actor().is_nil()) {
    // The bytes behind the mark of a normal task (TaskId::normal).
    auto found = by_origin_.find(std::string(reinterpret_cast<const char*>(task.data()) + 9, kOriginBytes));
    if (found == by_origin_.end()) return std::nullopt;
    return found->second;
  }
  const uint64_t sequence = sequence_of(id);
  auto next = by_sequence_.upper_bound(sequence);
  if (next == by_sequence_.begin()) return std::nullopt;
  --next;
  if (sequence - next->first >= wire::kSequencesMax) return std::nullopt;
  return next->second;
}

AdoptedObjects::Object* AdoptedObjects::find(const ObjectId& id) {
  auto found = objects_.find(id);
  return found == objects_.end() ? nullptr : &found->second;
}

AdoptedObjects::Object& AdoptedObjects::insert(wire::KeptObject what, const WorkerId& owner) {
  Object& object = objects_[what.id];
  inline_bytes_ += what.value.size();
  object.what = std::move(what);
  object.owner = owner;
  return object;
}

/// What the object contains is kept with it, by its owner while that lives: also what it has handed over.
/// `giver`, the living process that gave the object, is not told to hold what it owns itself: it does until
/// its end.
void AdoptedObjects::bind(Object& object, ProcessNumber giver) {
  for (const auto& [id, owner] : object.what.contained) {
    auto known = known_.find(owner.worker);
    if (known == known_.end() || !known->second.alive) {
      Object* inner = find(id);
      if (inner == nullptr) continue;  // lost with its owner
      if (auto real = known_.find(inner->owner); real != known_.end() && real->second.alive)
        continue;  // a wrong owner was named
      ++inner->inside;
      object.inner.push_back({id, 0});
      continue;
    }
    const ProcessNumber number = known->second.number;
    ++held_from_[number][id];
    object.inner.push_back({id, number});
    if (number != giver) effects_.hold(number, id);
  }
}

bool AdoptedObjects::hand_over(ProcessNumber from, uint64_t part, std::vector<wire::KeptObject> objects) {
  auto giver = living_.find(from);
  if (giver == living_.end()) return true;
  auto& [last_part, answer] = handed_over_.try_emplace(from, 0, true).first->second;
  if (part <= last_part) return answer;
  last_part = part;
  answer = true;
  for (wire::KeptObject& what : objects) {
    const ObjectId id = what.id;
    if (objects_.contains(id) || owner_of(id) != giver->second) continue;
    if (what.stored) what.value.clear();
    if (inline_bytes_ + what.value.size() > inline_bytes_max_) {
      withdraw(from);
      return answer = false;
    }
    insert(std::move(what), giver->second);
    bind(*find(id), from);
  }
  return true;
}

void AdoptedObjects::withdraw(ProcessNumber giver) {
  auto life = living_.find(giver);
  if (life == living_.end()) return;
  std::vector<Inner> inside;
  std::erase_if(objects_, [&](const auto& one) {
    const Object& object = one.second;
    if (object.owner != life->second) return false;
    SKATE_ASSERT(object.inside == 0 && object.holders.empty(), "a living process's object was adopted");
    inline_bytes_ -= object.what.value.size();
    inside.insert(inside.end(), object.inner.begin(), object.inner.end());
    return true;
  });
  for (const Inner& inner : inside) {
    if (unhold(inner, giver)) continue;
    Object* kept = find(inner.id);
    if (kept == nullptr) continue;
    --kept->inside;
    settle_if_needless(inner.id);
  }
}

void AdoptedObjects::process_ended(ProcessNumber number, const std::set<ProcessNumber>& linked,
                                   const std::vector<ObjectId>& stored) {
  auto life = living_.find(number);
  if (life == living_.end()) return;
  const WorkerId id = life->second;
  living_.erase(life);
  handed_over_.erase(number);
  known_.at(id).alive = false;
  ended_.push_back(id);

  // Its own objects: first all of them, then what they contain.
  std::vector<ObjectId> fresh;
  for (const ObjectId& object : stored) {
    if (objects_.contains(object) || owner_of(object) != id) continue;
    std::optional<wire::KeptObject> what = effects_.look(object);
    if (!what) continue;
    insert(std::move(*what), id);
    fresh.push_back(object);
  }
  for (const ObjectId& object : fresh) bind(*find(object), 0);
  // What it was asked to keep is with the others now, or lost.
  if (auto held = held_from_.find(number); held != held_from_.end()) {
    for (const auto& [inner, count] : held->second)
      if (Object* object = find(inner)) object->inside += count;
    held_from_.erase(held);
  }
  std::set<ProcessNumber> waiting;
  for (ProcessNumber other : linked)
    if (living_.contains(other)) waiting.insert(other);
  settling_[id] = std::move(waiting);

  // As a holder: first what contains is looked at (above), then what it held goes.
  std::vector<WorkerId> complete;
  for (auto& [owner, others] : settling_) {
    others.erase(number);
    if (others.empty()) complete.push_back(owner);
  }
  if (auto held = held_by_.find(number); held != held_by_.end()) {
    std::set<ObjectId> ids = std::move(held->second);
    held_by_.erase(held);
    for (const ObjectId& object : ids)
      if (Object* kept = find(object)) kept->holders.erase(number);
    for (const ObjectId& object : ids) settle_if_needless(object);
  }
  for (const WorkerId& owner : complete) settle(owner);
  collect();
  forget_oldest();
}

wire::ObjectsClaimed AdoptedObjects::claim(ProcessNumber from, const wire::ClaimObjects& request) {
  wire::ObjectsClaimed out;
  out.owner = request.owner;
  const bool alive = living_.contains(from);
  auto owner = known_.find(request.owner.worker);
  const bool ended = owner != known_.end() && !owner->second.alive;
  for (const ObjectId& id : request.objects) {
    Object* object = find(id);
    if (object == nullptr && ended && alive && settling_.contains(request.owner.worker) &&
        owner_of(id) == request.owner.worker) {
      // A result that was finished between its owner's end and now.
      if (std::optional<wire::KeptObject> what = effects_.look(id)) {
        object = &insert(std::move(*what), request.owner.worker);
        for (const auto& [outer, containing] : objects_)
          for (const Inner& inner : containing.inner) object->inside += inner.id == id;
        bind(*object, 0);
      }
    }
    if (object == nullptr || !ended || !alive || object->owner != request.owner.worker) {
      out.lost.push_back(id);
      continue;
    }
    object->holders.insert(from);
    held_by_[from].insert(id);
    out.kept.push_back(object->what);
  }
  if (auto settling = settling_.find(request.owner.worker); ended && settling != settling_.end()) {
    settling->second.erase(from);
    if (settling->second.empty()) {
      settle(request.owner.worker);
      collect();
    }
  }
  return out;
}

void AdoptedObjects::release(ProcessNumber from, const std::vector<ObjectId>& ids) {
  auto held = held_by_.find(from);
  if (held == held_by_.end()) return;
  for (const ObjectId& id : ids) {
    if (held->second.erase(id) == 0) continue;
    find(id)->holders.erase(from);
    settle_if_needless(id);
  }
  if (held->second.empty()) held_by_.erase(held);
}

/// Everybody has said what he holds of this owner's.
void AdoptedObjects::settle(const WorkerId& owner) {
  settling_.erase(owner);
  settled_ = true;
  std::vector<ObjectId> its;
  for (auto& [id, object] : objects_) {
    if (object.owner != owner) continue;
    object.offered = false;
    its.push_back(id);
  }
  for (const ObjectId& id : its) settle_if_needless(id);
}

/// False: it is not of a living owner. `giver` is not told, as it was not in `bind`.
bool AdoptedObjects::unhold(const Inner& inner, ProcessNumber giver) {
  auto held = held_from_.find(inner.held_from);
  if (held == held_from_.end()) return false;
  auto count = held->second.find(inner.id);
  if (inner.held_from != giver) effects_.unhold(inner.held_from, inner.id);
  if (--count->second == 0) held->second.erase(count);
  if (held->second.empty()) held_from_.erase(held);
  return true;
}

/// Frees the object if nothing needs it, and then maybe what it contains: a loop, not recursion.
void AdoptedObjects::settle_if_needless(const ObjectId& first) {
  std::vector<ObjectId> stack{first};
  while (!stack.empty()) {
    const ObjectId id = stack.back();
    stack.pop_back();
    auto found = objects_.find(id);
    if (found == objects_.end()) continue;
    Object& object = found->second;
    if (object.offered || !object.holders.empty() || object.inside != 0) continue;
    std::vector<Inner> inner = std::move(object.inner);
    inline_bytes_ -= object.what.value.size();
    if (object.what.stored) effects_.erase_stored(id);
    objects_.erase(found);
    for (const Inner& one : inner) {
      if (unhold(one, 0)) continue;
      if (Object* kept = find(one.id)) {
        --kept->inside;
        stack.push_back(one.id);
      }
    }
  }
}

/// Objects that contain each other in a circle keep each other; nobody can reach them, so they go.
void AdoptedObjects::collect() {
  std::unordered_set<ObjectId> reached;
  std::vector<ObjectId> stack;
  for (const auto& [id, object] : objects_)
    if (object.offered || !object.holders.empty()) stack.push_back(id);
  while (!stack.empty()) {
    const ObjectId id = stack.back();
    stack.pop_back();
    Object* object = find(id);
    if (object == nullptr || !reached.insert(id).second) continue;
    for (const Inner& inner : object->inner) stack.push_back(inner.id);
  }
  std::vector<ObjectId> lost;
  for (const auto& [id, object] : objects_)
    if (!reached.contains(id)) lost.push_back(id);
  for (const ObjectId& id : lost) {
    Object* object = find(id);
    if (object == nullptr) continue;
    // As if it contained nothing of the circle: then nothing is inside anything, and each goes by itself.
    std::vector<Inner> outside;
    for (const Inner& inner : object->inner) {
      Object* kept = held_from_.contains(inner.held_from) ? nullptr : find(inner.id);
      if (kept != nullptr && !reached.contains(inner.id)) {
        --kept->inside;
      } else {
        outside.push_back(inner);
      }
    }
    object->inner = std::move(outside);
  }
  for (const ObjectId& id : lost) settle_if_needless(id);
}

void AdoptedObjects::forget_oldest() {
  while (ended_.size() > kEndedKept && !settling_.contains(ended_.front())) {
    const WorkerId id = ended_.front();
    ended_.pop_front();
    by_sequence_.erase(known_.at(id).first_sequence);
    if (auto found = by_origin_.find(origin_of(id)); found != by_origin_.end() && found->second == id)
      by_origin_.erase(found);
    known_.erase(id);
  }
}

bool AdoptedObjects::is_stray(const ObjectId& id) const {
  if (objects_.contains(id)) return false;
  std::optional<WorkerId> owner = owner_of(id);
  return owner && !known_.at(*owner).alive && !settling_.contains(*owner);
}

std::string AdoptedObjects::check() const {
  std::unordered_map<ObjectId, uint32_t> inside;
  std::map<std::pair<ProcessNumber, ObjectId>, uint32_t> from;
  uint64_t bytes = 0;
  for (const auto& [id, object] : objects_) {
    bytes += object.what.value.size();
    for (const Inner& inner : object.inner) {
      if (held_from_.contains(inner.held_from))
        ++from[{inner.held_from, inner.id}];
      else
        ++inside[inner.id];
    }
    for (ProcessNumber holder : object.holders) {
      auto held = held_by_.find(holder);
      if (held == held_by_.end() || !held->second.contains(id)) return id.hex() + " has an unknown holder";
      if (!living_.contains(holder)) return id.hex() + " is held by a process that has ended";
    }
    if (!object.offered && object.holders.empty() && object.inside == 0) return id.hex() + " is needless";
  }
  for (const auto& [id, object] : objects_) {
    auto found = inside.find(id);
    if (object.inside != (found == inside.end() ? 0 : found->second))
      return id.hex() + " is inside " + std::to_string(object.inside) + " objects by its count";
  }
  for (const auto& [owner, held] : held_from_)
    for (const auto& [id, count] : held)
      if (from[{owner, id}] != count) return id.hex() + " is held from its owner by a wrong count";
  if (bytes != inline_bytes_) return "the bytes of inline values do not add up";
  return "";
}

}  // namespace skate::node
