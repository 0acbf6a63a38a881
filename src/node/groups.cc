// Placement groups on this node: reservations that control orders, demands that run in them, and who waits
// for them.
//
// The daemon watches every group that one of its processes waits for or runs in: control tells it of each
// change (kGroup), so nobody asks twice. A demand of a group that is not (yet) here waits in the scheduler;
// the news that the group is removed refuses it.
#include <algorithm>

#include "node/node_daemon.h"

namespace skate::node {

namespace {

std::string describe(const wire::Labels& labels) {
  std::string out;
  for (const auto& [key, value] : labels) out += (out.empty() ? "" : ", ") + key + "=" + value;
  return out;
}

bool has_all(const Resources& total, const Resources& need) {
  return std::all_of(need.begin(), need.end(), [&](const auto& item) {
    const auto found = total.find(item.first);
    return item.second <= 0 || (found != total.end() && found->second >= item.second);
  });
}

}  // namespace

void NodeDaemon::reserve_bundles(wire::ReserveBundles order) {
  scheduler_.reserve(order.group, order.attempt, std::move(order.bundles), now_us(), order.waits);
  watch_group(order.group);
  pump_later();
}

void NodeDaemon::return_bundles(const wire::GroupOrder& order) {
  if (order.removed) {
    scheduler_.end_group(order.group, order.why);
  } else {
    scheduler_.unreserve(order.group, order.attempt, order.why);
  }
  pump_later();
}

bool NodeDaemon::place_of(Process& process, const wire::LeaseDemand& demand, Place& place) {
  if (demand.shape.scheduling.empty() || demand.wanted == 0) return true;
  const wire::SchedulingPlan plan = wire::parse_scheduling(demand.shape.scheduling);
  auto refuse_for_good = [&](wire::DeathKind kind, const std::string& why) {
    tell(process, wire::MessageType::kLeaseRefused,
         wire::LeaseRefused{demand.shape_id, death_of(kind, why), false});
    return false;
  };
  if (plan.node && !plan.soft) {
    if (*plan.node != id_)
      return refuse_for_good(wire::DeathKind::kUnschedulable, "it may run on the node " + plan.node->hex() +
                                                                  " only, which there is not (soft=False)");
    if (!has_all(scheduler_.total(), demand.shape.resources))
      return refuse_for_good(wire::DeathKind::kUnschedulable,
                             "it may run on the node " + plan.node->hex() + " only (soft=False), which has " +
                                 describe(scheduler_.total()) + "; it asks for " +
                                 describe(demand.shape.resources));
  }
  if (plan.group) {
    if (plan.group->is_nil())
      return refuse_for_good(wire::DeathKind::kGroupRemoved, "it names no placement group");
    place.group = *plan.group;
    place.bundle = plan.bundle;
    watch_group(place.group);
  }
  if (!wire::choice_for(plan, options_.labels))
    place.barred = "asks for a node with other labels (" + wire::describe_labels(plan) + ") than this one (" +
                   describe(options_.labels) + ")";
  return true;
}

void NodeDaemon::watch_group(const PlacementGroupId& group) {
  if (watched_groups_.try_emplace(group).second) tasks_.spawn(ask_group(group));
}

rt::Task<void> NodeDaemon::ask_group(PlacementGroupId group) {
  wire::PlacementGroupRequest request;
  request.group = group;
  std::string body = wire::encode(request);
  rpc::CallOptions options{.timeout = rt::Duration::zero()};  // the answer is waited for as long as it takes
  Result<std::string> answer = co_await control_->call(
      static_cast<uint16_t>(wire::ControlMethod::kGetPlacementGroup), std::move(body), options);
  wire::PlacementGroupReply news;
  news.group = group;
  news.state = "REMOVED";
  if (answer) {
    Result<wire::PlacementGroupReply> reply =
        wire::decode<wire::PlacementGroupReply>(std::string_view(*answer));
    if (reply) news = std::move(*reply);
  } else if (answer.error().code != ErrorCode::kNotFound) {
    warn("the control service does not tell of placement group " + group.hex() + ": " +
         answer.error().message);
  }
  group_news(news);
}

void NodeDaemon::group_news(const wire::PlacementGroupReply& news) {
  auto found = watched_groups_.find(news.group);
  if (found == watched_groups_.end()) return;
  if (news.state != "REMOVED" && news.version < found->second.version) return;  // overtaken on the way
  found->second = {news.state, news.version};
  if (news.state == "REMOVED") {
    watched_groups_.erase(found);
    scheduler_.end_group(news.group, "its placement group " + news.group.hex() + " was removed");
    pump_later();
  }
  group_news_.wake_all();
}

rt::Task<void> NodeDaemon::next_group_news() { co_await group_news_.wait(); }

/// Returns when the group is made or removed, when the time is over or the process gone.
rt::Task<void> NodeDaemon::wait_for_group(ProcessNumber number, wire::PlacementGroupRequest request) {
  constexpr int64_t kWaitMax_ms = int64_t{366} * 24 * 3600 * 1000;
  const rt::TimePoint until = loop_.now() + std::chrono::milliseconds(std::min(request.wait_ms, kWaitMax_ms));
  watch_group(request.group);
  while (find(number) != nullptr && loop_.now() < until) {
    const auto found = watched_groups_.find(request.group);
    if (found == watched_groups_.end() || found->second.state == "CREATED") co_return;
    rt::Task<void> news = next_group_news();
    (void)co_await rt::with_deadline<void>(until, std::move(news));
  }
}

void NodeDaemon::report_infeasible_group(const Process& process, const std::string& reply) {
  Result<wire::PlacementGroupReply> group = wire::decode<wire::PlacementGroupReply>(std::string_view(reply));
  if (!group || group->state != "INFEASIBLE") return;
  warn_job_of(&process, "no nodes of this cluster can hold the placement group " + group->group.hex() +
                            ", even if they were empty. It waits until nodes that can join. It is " +
                            group->json);
}

}  // namespace skate::node
