// Objects whose owner has ended: what processes say of them, and what the daemon then does.
#include "node/node_daemon.h"

namespace skate::node {

void NodeDaemon::adopt_what_it_owned(const Process& process) {
  std::set<ProcessNumber> linked;
  for (const auto& [peer, link] : process.links) linked.insert(peer);
  adopted_.process_ended(process.number, linked, store_->objects());
  after_adoption();
}

void NodeDaemon::claim_objects(Process& process, const wire::ClaimObjects& request) {
  wire::ObjectsClaimed answer = adopted_.claim(process.number, request);
  if (!request.objects.empty()) tell(process, wire::MessageType::kObjectsClaimed, answer);
  after_adoption();
}

void NodeDaemon::hand_over(Process& process, wire::HandOver request) {
  const bool kept = adopted_.hand_over(process.number, request.call_id, std::move(request.objects));
  if (!kept)
    warn("process " + std::to_string(process.pid) +
         " cannot hand over what it owns, and stays: the small values of ended processes take " +
         std::to_string(adopted_.inline_bytes()) + " bytes already");
  tell(process, wire::MessageType::kHandedOver, wire::HandedOver{request.call_id, kept});
  after_adoption();
}

void NodeDaemon::after_adoption() {
  tell_holds();
  if (!adopted_.take_settled()) return;
  std::vector<ObjectId> strays = store_->objects();
  std::erase_if(strays, [&](const ObjectId& id) { return !adopted_.is_stray(id); });
  if (!strays.empty()) store_->erase(strays);
}

void NodeDaemon::tell_holds() {
  std::vector<Hold> holds;
  holds.swap(holds_);
  for (size_t i = 0; i < holds.size();) {
    const Hold first = holds[i];
    std::vector<ObjectId> ids;
    for (; i < holds.size() && holds[i].owner == first.owner && holds[i].more == first.more; ++i)
      ids.push_back(holds[i].id);
    Process* owner = find(first.owner);
    if (owner == nullptr) continue;  // ended meanwhile
    if (first.more)
      tell(*owner, wire::MessageType::kHoldObjects, wire::HoldObjects{std::move(ids)});
    else
      tell(*owner, wire::MessageType::kUnholdObjects, wire::UnholdObjects{std::move(ids)});
  }
}

}  // namespace skate::node
