#include "worker/ownership/object_table.h"

#include <algorithm>
#include <boost/unordered/unordered_flat_set.hpp>

#include "base/assert.h"

namespace skate::worker {

ObjectTable::~ObjectTable() {
  for (auto& [id, entry] : entries_) delete entry;
}

Entry* ObjectTable::create(const ObjectId& id) {
  Entry* entry = new Entry();
  entry->id = id;
  bool inserted = entries_.emplace(id, entry).second;
  SKATE_ASSERT(inserted, "two objects with one id");
  return entry;
}

Entry* ObjectTable::find(const ObjectId& id) const {
  auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : found->second;
}

Entry* ObjectTable::intern(const ObjectId& id, Peer* owner) {
  if (Entry* known = find(id)) return known;
  if (owner == nullptr) return nullptr;
  Entry* entry = create(id);
  entry->owner = owner;
  return entry;
}

void ObjectTable::unpin(Entry* entry) {
  SKATE_ASSERT(entry->pins > 0, "unpin without pin");
  --entry->pins;
  settle(entry);
}

void ObjectTable::drop_handle(Entry* entry) {
  uint32_t before = entry->handles.fetch_sub(1, std::memory_order_acq_rel);
  SKATE_ASSERT(before > 0, "handle dropped twice");
  if (before == 1) settle(entry);
}

void ObjectTable::settle(Entry* entry) {
  if (entry->pins != 0 || entry->grants_out != 0 || entry->handles.load(std::memory_order_acquire) != 0)
    return;
  // Freeing an object may free what it contains, to any depth: a loop, not recursion.
  std::vector<Entry*> stack{entry};
  while (!stack.empty()) {
    Entry* next = stack.back();
    stack.pop_back();
    if (next->pins != 0 || next->grants_out != 0 || next->handles.load(std::memory_order_acquire) != 0)
      continue;
    if (next->owner != nullptr) {
      if (next->grants_in != 0) effects_.release_ref(next->owner, next->id, next->grants_in);
    } else {
      if (next->in_local_store) effects_.erase_stored(next->id);
      if (next->keeps_actor) effects_.actor_out_of_scope(next->id);
    }
    effects_.object_gone(*next);
    if (next->contained) {
      for (Entry* inner : *next->contained) {
        SKATE_ASSERT(inner->pins > 0, "a contained object lost its pin");
        if (--inner->pins == 0) stack.push_back(inner);
      }
    }
    entries_.erase(next->id);
    delete next;
  }
}

void ObjectTable::grant(Entry* entry, Peer* borrower, uint32_t count) {
  entry->grants_out += count;
  granted_[borrower][entry->id] += count;
}

bool ObjectTable::take_back(const ObjectId& id, Peer* borrower, uint32_t count) {
  auto of_peer = granted_.find(borrower);
  if (of_peer == granted_.end()) return false;
  auto held = of_peer->second.find(id);
  if (held == of_peer->second.end() || held->second < count) return false;
  held->second -= count;
  if (held->second == 0) of_peer->second.erase(held);
  Entry* entry = find(id);
  SKATE_ASSERT(entry != nullptr && entry->grants_out >= count, "grants do not add up");
  entry->grants_out -= count;
  settle(entry);
  return true;
}

uint32_t ObjectTable::granted_to(const Entry* entry, Peer* borrower) const {
  auto of_peer = granted_.find(borrower);
  if (of_peer == granted_.end()) return 0;
  auto held = of_peer->second.find(entry->id);
  return held == of_peer->second.end() ? 0 : held->second;
}

ObjectTable::Registering& ObjectTable::register_anew(Entry* entry) {
  entry->grants_in = 1;
  effects_.register_ref(entry->owner, entry->id, 1);
  Registering& registering =
      registering_.try_emplace(entry->id, Registering{entry->owner, 0, {}}).first->second;
  ++registering.unanswered;
  return registering;
}

void ObjectTable::claim(Entry* entry) {
  if (entry->owner != nullptr && entry->grants_in == 0) register_anew(entry);
}

bool ObjectTable::register_then(const std::vector<Entry*>& entries, Peer* ordered_with,
                                const Obligation& obligation) {
  std::shared_ptr<Pending> pending;
  for (Entry* entry : entries) {
    claim(entry);
    auto under_way = registering_.find(entry->id);
    if (under_way == registering_.end() || entry->owner == ordered_with) continue;
    if (!pending) pending = std::make_shared<Pending>(Pending{obligation, 0});
    ++pending->remaining;
    under_way->second.waiting.push_back(pending);
  }
  return pending == nullptr;
}

bool ObjectTable::last_answer(const ObjectId& id) const {
  auto found = registering_.find(id);
  return found != registering_.end() && found->second.unanswered == 1;
}

void ObjectTable::registered(const ObjectId& id) {
  auto found = registering_.find(id);
  if (found == registering_.end() || --found->second.unanswered != 0) return;
  std::vector<std::shared_ptr<Pending>> waiting = std::move(found->second.waiting);
  registering_.erase(found);
  answered(waiting);
}

void ObjectTable::answered(const std::vector<std::shared_ptr<Pending>>& waiting) {
  for (const std::shared_ptr<Pending>& pending : waiting)
    if (--pending->remaining == 0) meet(pending->obligation);
}

void ObjectTable::meet(const Obligation& obligation) {
  switch (obligation.kind) {
    case Obligation::Kind::kPinsReleased: effects_.pins_released(obligation.peer, obligation.token); break;
    case Obligation::Kind::kResultsTaken: effects_.results_taken(obligation.peer, obligation.token); break;
    case Obligation::Kind::kUnpin:
      if (Entry* outer = find(obligation.outer)) unpin(outer);
      break;
  }
}

void ObjectTable::contain(Entry* outer, std::vector<Entry*> inner) {
  if (inner.empty()) return;
  for (Entry* entry : inner) ++entry->pins;
  if (!outer->contained) outer->contained = std::make_unique<std::vector<Entry*>>();
  outer->contained->insert(outer->contained->end(), inner.begin(), inner.end());
}

bool ObjectTable::may_give() const {
  if (!registering_.empty()) return false;
  return std::none_of(entries_.begin(), entries_.end(), [](const auto& one) {
    return one.second->owner == nullptr && one.second->keeps_actor;
  });
}

bool ObjectTable::granted_any() const {
  return std::any_of(granted_.begin(), granted_.end(), [](const auto& of) { return !of.second.empty(); });
}

std::vector<Entry*> ObjectTable::give(uint64_t bytes_max, size_t count_max) {
  std::vector<Entry*> given, stack;
  uint64_t bytes = 0;
  auto take = [&](Entry* entry) {
    if (entry->owner != nullptr || entry->given || !entry->ready()) return;
    entry->given = true;
    ++entry->pins;
    given.push_back(entry);
    if (entry->value) bytes += entry->value->size();
  };
  // What was given before may contain what was left out then, its bounds were reached; and nobody else may
  // hold it any more.
  boost::unordered_flat_set<Entry*> seen;
  for (const auto& [id, entry] : entries_)
    if ((entry->grants_out != 0 || entry->given) && seen.insert(entry).second) stack.push_back(entry);
  while (!stack.empty() && bytes < bytes_max && given.size() < count_max) {
    Entry* entry = stack.back();
    stack.pop_back();
    take(entry);
    if (!entry->contained) continue;
    for (Entry* inner : *entry->contained)
      if (inner->owner == nullptr && seen.insert(inner).second) stack.push_back(inner);
  }
  return given;
}

void ObjectTable::take_home() {
  std::vector<ObjectId> given;
  for (const auto& [id, entry] : entries_)
    if (entry->given) given.push_back(id);
  for (const ObjectId& id : given) {
    Entry* entry = find(id);
    entry->given = false;
    unpin(entry);
  }
}

void ObjectTable::peer_died(Peer* peer) {
  if (auto of_peer = granted_.find(peer); of_peer != granted_.end()) {
    auto held = std::move(of_peer->second);
    granted_.erase(of_peer);
    for (auto& [id, count] : held) {
      Entry* entry = find(id);
      SKATE_ASSERT(entry != nullptr && entry->grants_out >= count, "grants do not add up");
      entry->grants_out -= count;
      settle(entry);
    }
  }
  // Acknowledgements that were due will not come. The heir's will; where nothing is held any more, who waited
  // moves on, which may free more.
  std::vector<std::shared_ptr<Pending>> waiting;
  erase_if(registering_, [&](auto& one) {
    if (one.second.owner != peer) return false;
    one.second.unanswered = 0;
    if (find(one.first) != nullptr) return false;
    waiting.insert(waiting.end(), one.second.waiting.begin(), one.second.waiting.end());
    return true;
  });
  for (auto& [id, entry] : entries_)
    if (entry->owner == peer) register_anew(entry);
  answered(waiting);
}

}  // namespace skate::worker
