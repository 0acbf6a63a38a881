// What processes ask of their daemon, on their links.
#include <unistd.h>

#include "node/node_daemon.h"

namespace skate::node {

namespace {
constexpr size_t kRecordsPerTurn = 256;          // of one process, then the others have theirs
constexpr size_t kBacklogBytesMax = 256u << 20;  // for a process that does not read
constexpr rt::Duration kControlTimeout = std::chrono::seconds(60);

bool may_be_relayed(uint16_t method) {
  switch (static_cast<wire::ControlMethod>(method)) {
    case wire::ControlMethod::kRegisterActor:
    case wire::ControlMethod::kPlaceActor:
    case wire::ControlMethod::kActorOutOfScope:
    case wire::ControlMethod::kKillActor:
    case wire::ControlMethod::kGetActor:
    case wire::ControlMethod::kGetNamedActor:
    case wire::ControlMethod::kListNamedActors:
    case wire::ControlMethod::kKv:
    case wire::ControlMethod::kClusterInfo:
    case wire::ControlMethod::kCreatePlacementGroup:
    case wire::ControlMethod::kRemovePlacementGroup:
    case wire::ControlMethod::kGetPlacementGroup: return true;
    default: return false;
  }
}
}  // namespace

rt::Task<void> NodeDaemon::doorbell_loop() {
  rpc::Doorbell& bell = segment_->slot(slot_).doorbell;
  std::unique_ptr<rt::FdWatch> watch = loop_.watch_fd(event_fd_.get());
  constexpr auto kAwake = static_cast<uint32_t>(rpc::Sleeper::kNone);
  constexpr auto kAsleep = static_cast<uint32_t>(rpc::Sleeper::kEventFd);
  while (true) {
    bool any = false;
    rpc::take_ready(bell, [&](uint32_t link) {
      read_link(link);
      any = true;
    });
    if (any) {
      pump();
      co_await rt::sleep_for(rt::Duration::zero());  // timers and sockets have their turn
      continue;
    }
    bell.sleeper.store(kAsleep, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (rpc::any_ready(bell)) {
      bell.sleeper.store(kAwake, std::memory_order_seq_cst);
      continue;
    }
    Result<void> ready = co_await watch->wait_readable();
    if (!ready) {
      ask_stop("its doorbell is broken: " + ready.error().message);
      co_return;
    }
    uint64_t count = 0;
    [[maybe_unused]] ssize_t got = ::read(event_fd_.get(), &count, sizeof count);
    bell.sleeper.store(kAwake, std::memory_order_seq_cst);
  }
}

void NodeDaemon::read_link(uint32_t index) {
  Process* process = index < by_link_.size() ? find(by_link_[index]) : nullptr;
  if (process == nullptr || !process->link || process->ending) return;
  Result<size_t> read = process->link->receive(
      [&](uint16_t type, std::span<const uint8_t> body) { handle(*process, type, body); }, kRecordsPerTurn);
  if (!read || process->link->backlog_bytes() > kBacklogBytesMax) {
    std::string why = read ? "it does not read what the daemon tells it" : read.error().message;
    warn("process " + std::to_string(process->pid) + ": " + why);
    wire::Death cause = death_of(wire::DeathKind::kKilled, why, process->pid);
    if (process->kind == wire::ProcessKind::kDriver) {
      process->cause = cause;
      tasks_.spawn(end_process(process->number));
    } else {
      kill(*process, cause);
    }
    return;
  }
  if (!process->link->empty()) rpc::ring(segment_->slot(slot_).doorbell, index, rpc::Urgency::kUrgent, -1);
}

void NodeDaemon::handle(Process& process, uint16_t type, std::span<const uint8_t> body) {
  switch (static_cast<wire::MessageType>(type)) {
    case wire::MessageType::kLeaseDemand: {
      wire::LeaseDemand message;
      if (!parse(process, body, message) || process.ending) return;
      const wire::LeaseShape& shape = message.shape;
      job_of(shape.job, "");
      Place place;
      if (!place_of(process, message, place)) return;
      scheduler_.demand(process.number, message.shape_id, shape.job, shape.resources, shape.runtime_env,
                        shape.function, shape.priority, message.wanted, message.backlog, now_us(), place);
      return;
    }
    case wire::MessageType::kLeaseReturn: {
      wire::LeaseReturn message;
      if (!parse(process, body, message)) return;
      Process* worker = find(scheduler_.worker_of(message.lease_id));
      scheduler_.lease_returned(process.number, message.lease_id, message.worker_exits || message.suspect,
                                now_us());
      if (worker != nullptr && message.suspect)
        ask_exit(*worker, death_of(wire::DeathKind::kIntended, "its owner saw it misbehave"), true,
                 options_.exit_grace_ms);
      return;
    }
    case wire::MessageType::kOpenLink: {
      wire::OpenLink message;
      if (parse(process, body, message)) open_link(process, message.peer);
      return;
    }
    case wire::MessageType::kControlCall: {
      wire::ControlCall message;
      if (parse(process, body, message)) tasks_.spawn(relay(process.number, std::move(message)));
      return;
    }
    case wire::MessageType::kKillWorker: {
      wire::KillWorker message;
      if (parse(process, body, message)) kill_worker(process, message);
      return;
    }
    case wire::MessageType::kActorCreated: {
      wire::ActorCreated message;
      if (parse(process, body, message)) actor_created(process, message);
      return;
    }
    case wire::MessageType::kStoreSpace: {
      wire::StoreSpace message;
      if (parse(process, body, message)) tasks_.spawn(make_space(process.number, message));
      return;
    }
    case wire::MessageType::kRestoreObjects: {
      wire::RestoreObjects message;
      if (parse(process, body, message)) tasks_.spawn(restore(process.number, std::move(message)));
      return;
    }
    case wire::MessageType::kEraseObjects: {
      wire::EraseObjects message;
      if (!parse(process, body, message)) return;
      std::erase_if(message.objects, [&](const ObjectId& id) { return adopted_.adopted(id); });
      store_->erase(message.objects);
      return;
    }
    case wire::MessageType::kClaimObjects: {
      wire::ClaimObjects message;
      if (parse(process, body, message)) claim_objects(process, message);
      return;
    }
    case wire::MessageType::kReleaseObjects: {
      wire::ReleaseObjects message;
      if (!parse(process, body, message)) return;
      adopted_.release(process.number, message.objects);
      after_adoption();
      return;
    }
    case wire::MessageType::kHandOver: {
      wire::HandOver message;
      if (parse(process, body, message)) hand_over(process, std::move(message));
      return;
    }
    case wire::MessageType::kProcessExiting: {
      wire::ProcessExiting message;
      if (!parse(process, body, message) || process.cause) return;
      process.cause = std::move(message.reason);
      process.cause->pid = process.pid;
      // A driver may live on after shutdown(); for us it is gone.
      if (process.kind == wire::ProcessKind::kDriver && !process.ending)
        tasks_.spawn(end_process(process.number));
      return;
    }
    case wire::MessageType::kExitDeclined:
      process.declined_exit = true;
      adopted_.withdraw(process.number);
      after_adoption();
      scheduler_.exit_declined(process.number, now_us());
      return;
    case wire::MessageType::kWorkerReady: {
      wire::WorkerReady message;
      if (parse(process, body, message)) worker_ready(process, message);
      return;
    }
    case wire::MessageType::kFlushLogs: return flush_logs(process);
    case wire::MessageType::kWake: return;  // the pump that follows looks at the flags
    default:
      warn("process " + std::to_string(process.pid) + " sent a record of unknown type " +
           std::to_string(type));
  }
}

void NodeDaemon::flush_rings() {
  for (uint32_t link : to_ring_)
    if (Process* process = find(by_link_[link]); process && process->link)
      process->link->ring(rpc::Urgency::kUrgent);
  to_ring_.clear();
}

void NodeDaemon::open_link(Process& process, const wire::Address& address) {
  wire::Death cause;
  if (!address.node.is_nil() && address.node != id_) {
    cause.message =
        "no node of this cluster has its process; the ref comes from another cluster, or from a node that is "
        "gone";
  } else if (Process* peer = find(address.worker); peer && peer->link && !peer->ending && peer != &process) {
    if (connect(process, *peer)) return;
    cause.message = "all links of the node are in use (" + std::to_string(rpc::kLinksMax) + ")";
  } else if (peer && peer->ending && peer != &process) {
    peer->refused_later.push_back(process.number);  // its cause is not known yet, nor what it leaves
    return;
  } else if (auto dead = dead_.find(address.worker); dead != dead_.end()) {
    cause = dead->second;
  } else {
    cause.message = "no such process was ever on this node";
  }
  tell(process, wire::MessageType::kLinkRefused, wire::LinkRefused{address, cause});
}

/// Tells both ends, the peer first. A link that exists is told to the opener again.
bool NodeDaemon::connect(Process& opener, Process& peer) {
  auto found = opener.links.find(peer.number);
  const bool fresh = found == opener.links.end();
  if (fresh) {
    auto link = links_->take_link();
    if (!link) return false;
    found = opener.links.emplace(peer.number, *link).first;
    peer.links.emplace(opener.number, *link);
  }
  const uint32_t opener_side = opener.number < peer.number ? 0 : 1;
  if (fresh) {
    tell(peer, wire::MessageType::kLinkOpened,
         wire::LinkOpened{address_of(opener), found->second, 1 - opener_side, opener.slot, opener.pid});
    flush_rings();
  }
  tell(opener, wire::MessageType::kLinkOpened,
       wire::LinkOpened{address_of(peer), found->second, opener_side, peer.slot, peer.pid});
  return true;
}

void NodeDaemon::kill_worker(Process& asker, const wire::KillWorker& request) {
  Process* process = find(request.worker.worker);
  if (process == nullptr || process->kind != wire::ProcessKind::kWorker) return;
  wire::Death cause = death_of(wire::DeathKind::kKilled, request.reason, process->pid);
  if (cause.message.empty()) cause.message = "killed on request of process " + std::to_string(asker.pid);
  if (request.force) {
    kill(*process, cause);
  } else {
    tell(*process, wire::MessageType::kExit, wire::Exit{cause, false});
  }
}

rt::Task<void> NodeDaemon::relay(ProcessNumber number, wire::ControlCall call) {
  wire::ControlReply reply;
  reply.call_id = call.call_id;
  if (!may_be_relayed(call.method)) {
    reply.error_code = static_cast<uint8_t>(ErrorCode::kDenied);
    reply.body = "processes may not call control method " + std::to_string(call.method);
  } else {
    const auto method = static_cast<wire::ControlMethod>(call.method);
    if (method == wire::ControlMethod::kGetActor) {
      if (auto request = wire::decode<wire::ActorRef>(std::string_view(call.body)))
        subscribers_[request->actor].insert(number);
    } else if (method == wire::ControlMethod::kRegisterActor) {
      if (auto request = wire::decode<wire::RegisterActor>(std::string_view(call.body)))
        subscribers_[request->actor].insert(number);
    } else if (method == wire::ControlMethod::kGetPlacementGroup) {
      if (auto request = wire::decode<wire::PlacementGroupRequest>(std::string_view(call.body));
          request && request->wait_ms > 0)
        co_await wait_for_group(number, std::move(*request));
    } else if (method == wire::ControlMethod::kClusterInfo) {
      // Tasks begin and end without a word to the daemon; who asks what is free learns how it is now.
      look_at_workers();
      pump_later();
      if (scheduler_.available() != reported_available_ ||
          scheduler_.bundle_resources(true) != reported_bundles_)
        co_await report();
    }
    rpc::CallOptions options{.timeout = kControlTimeout};
    Result<std::string> answer = co_await control_->call(call.method, std::move(call.body), options);
    reply.ok = answer.ok();
    if (answer) {
      reply.body = std::move(*answer);
      if (method == wire::ControlMethod::kGetNamedActor) {
        if (auto info = wire::decode<wire::ActorInfo>(std::string_view(reply.body)))
          subscribers_[info->actor].insert(number);
      } else if (method == wire::ControlMethod::kRegisterActor) {
        if (auto registered = wire::decode<wire::RegisterActorReply>(std::string_view(reply.body)))
          subscribers_[registered->info.actor].insert(number);
      } else if (method == wire::ControlMethod::kCreatePlacementGroup) {
        if (const Process* process = find(number)) report_infeasible_group(*process, reply.body);
      }
    } else {
      reply.error_code = static_cast<uint8_t>(answer.error().code);
      reply.body = answer.error().message;
    }
  }
  Process* process = find(number);
  if (process == nullptr) co_return;
  tell(*process, wire::MessageType::kControlReply, reply);
  flush_rings();
}

rt::Task<void> NodeDaemon::make_space(ProcessNumber number, wire::StoreSpace request) {
  Result<void> made = co_await store_->make_space(request.bytes);
  Process* process = find(number);
  if (process == nullptr) co_return;
  wire::StoreSpaceReply reply{request.call_id, made.ok(), 0, ""};
  if (!made) {
    reply.error_code = static_cast<uint8_t>(made.error().code);
    reply.message = made.error().message;
  }
  tell(*process, wire::MessageType::kStoreSpaceReply, reply);
  flush_rings();
}

rt::Task<void> NodeDaemon::restore(ProcessNumber number, wire::RestoreObjects request) {
  ObjectStore::Restored result = co_await store_->restore(std::move(request.objects));
  Process* process = find(number);
  if (process == nullptr) co_return;
  tell(*process, wire::MessageType::kObjectsRestored,
       wire::ObjectsRestored{request.call_id, std::move(result.restored), std::move(result.lost),
                             std::move(result.message)});
  flush_rings();
}

}  // namespace skate::node
