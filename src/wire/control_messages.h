// Requests to the control service and what it pushes.
//
// Node daemons talk to the control service over one connection (rpc). Processes send the methods marked P
// through their daemon (ControlCall). Every mutating request carries an idempotency key (a random number of
// the sender's); a duplicate gets the first answer again, in every phase.
#pragma once

#include "wire/types.h"

namespace skate::wire {

enum class ControlMethod : uint16_t {
  kRegisterNode = 1,      ///< node: RegisterNode -> RegisterNodeReply
  kNodeReport,            ///< node: NodeReport -> Empty; periodic and on change
  kRegisterJob,           ///< node: RegisterJob -> RegisterJobReply
  kFinishJob,             ///< node: FinishJob -> Empty; its actors that are not detached are killed
  kWorkerDied,            ///< node: WorkerDied -> Empty
  kActorCreated,          ///< node: ActorCreatedReport -> Empty
  kRegisterActor,         ///< P: RegisterActor -> RegisterActorReply; names and ids are taken here
  kPlaceActor,            ///< P: PlaceActor -> Empty; arguments are ready, find it a node
  kActorOutOfScope,       ///< P: ActorRef -> Empty; the last handle is gone (sent by the owner)
  kKillActor,             ///< P: KillActor -> Empty
  kGetActor,              ///< P: ActorRef -> ActorInfo; subscribes the asking process to changes
  kGetNamedActor,         ///< P: GetNamedActor -> ActorInfo; subscribes
  kListNamedActors,       ///< P: ListNamedActors -> ListNamedActorsReply
  kKv,                    ///< P: Kv -> KvReply
  kClusterInfo,           ///< P: ClusterInfo -> ClusterInfoReply (JSON)
  kCreatePlacementGroup,  ///< P: PlacementGroupRequest -> PlacementGroupReply
  kRemovePlacementGroup,  ///< P: the same
  kGetPlacementGroup,     ///< P: the same, by id or name; a daemon that asks hears of changes (kGroup). With
                          ///< wait_ms the daemon answers its process when the group is made, or too late
  kBundlesReserved,       ///< node: BundlesReserved -> Empty
};

enum class ControlTopic : uint16_t {
  kActor = 1,  ///< ActorInfo
  kGroup,      ///< PlacementGroupReply
};

/// Pushed by the control service to a node daemon (as rpc notifications).
enum class NodeCommand : uint16_t {
  kStartActor = 1,  ///< StartActor; the daemon answers with kActorCreated or kWorkerDied
  kStopActor,       ///< StopActor
  kPublish,         ///< Publish: hand `body` to the subscribed processes
  kJobFinished,     ///< FinishJob: end this job's workers
  kShutdown,
  kReserveBundles,  ///< ReserveBundles; answered with kBundlesReserved, at once or when there is room
  kCommitBundles,   ///< GroupOrder: every node of the group has reserved
  kNotice,          ///< Notice: for the driver's eyes
  kReturnBundles,   ///< GroupOrder: up to this attempt; what runs in them is killed
};

struct Empty {
  uint8_t unused{};
};

struct RegisterNode {
  NodeId node;
  std::string version;
  std::string ip;
  std::string socket_path;
  std::string name;
  Resources resources;
  std::map<std::string, std::string> labels;
  bool is_head{};
  std::vector<ActorInfo> live_actors;  ///< after a restart of the control service
  std::vector<std::pair<PlacementGroupId, uint64_t>> reservations;  ///< held or queued, with their attempts
};
struct RegisterNodeReply {
  std::string session_name;
  std::string config_json;
};

struct NodeReport {
  NodeId node;
  uint64_t sequence{};
  Resources available;
  uint64_t queued_tasks{};
  std::map<std::string, int64_t> stats;
  Resources bundles;  ///< of placement groups, by Ray's names
  Resources bundles_available;
};

struct RegisterJob {
  uint64_t key{};
  Address driver;
  int32_t pid{};
  std::string name_space;  ///< empty: anonymous, the reply holds the one given
  std::string job_json;
};
struct RegisterJobReply {
  JobId job;
  std::string name_space;
};
struct FinishJob {
  uint64_t key{};
  JobId job;
  bool failed{};
};

struct WorkerDied {
  Address worker;
  Death cause;
  ActorId actor;  ///< nil unless the worker was (to be) an actor
  uint64_t incarnation{};
};

struct ActorCreatedReport {
  ActorId actor;
  uint64_t incarnation{};
  Address address;
  int32_t pid{};
  bool ok{};
  Death cause;  ///< when not ok; kConstructor holds the exception
};

struct RegisterActor {
  uint64_t key{};
  ActorId actor;
  Address owner;
  JobId job;
  std::string class_name;
  std::string name;
  std::string name_space;
  bool detached{};
  bool get_if_exists{};
  std::string meta;
  int64_t max_restarts{};
  int64_t max_task_retries{};
  bool out_of_order{};
  int64_t max_pending_calls{-1};
};
struct RegisterActorReply {
  bool existed{};  ///< get_if_exists found one; `info` describes it
  ActorInfo info;
};
struct PlaceActor {
  uint64_t key{};
  ActorSpec spec;
  bool failed{};  ///< an argument failed: the actor dies with `cause` and is never placed
  Death cause;
};
struct ActorRef {
  ActorId actor;
};
struct KillActor {
  uint64_t key{};
  ActorId actor;
  bool no_restart{};
  std::string reason;
  bool graceful{};  ///< let queued calls end first (__ray_terminate__, out of scope)
};
struct GetNamedActor {
  std::string name;
  std::string name_space;
};
struct ListNamedActors {
  bool all_namespaces{};
  std::string name_space;
};
struct ListNamedActorsReply {
  std::vector<std::pair<std::string, std::string>> names;  ///< (namespace, name)
};

enum class KvOperation : uint8_t { kPut, kGet, kErase, kExists, kKeys };
struct Kv {
  uint64_t key{};  ///< idempotency key
  KvOperation operation{};
  std::string name_space;
  std::string name;  ///< or the prefix of kKeys and, with `by_prefix`, of kErase
  std::string value;
  bool overwrite{};
  bool by_prefix{};
};
struct KvReply {
  bool found{};  ///< kPut: something was there before
  std::string value;
  std::vector<std::string> keys;
  uint64_t erased{};
};

struct ClusterInfo {
  std::string what;       ///< "nodes", "jobs", "actors", "cluster_resources", "available_resources", ...
  std::string arguments;  ///< JSON
};
struct ClusterInfoReply {
  std::string json;
};

struct PlacementGroupRequest {
  uint64_t key{};
  PlacementGroupId group;  ///< nil: the one named `name` is meant
  std::string name;        ///< empty for none
  std::string name_space;
  std::string strategy;
  std::vector<Resources> bundles;
  std::vector<std::map<std::string, std::string>> bundle_labels;  ///< selectors, one for each bundle or none
  bool detached{};
  JobId job;
  WorkerId creator;    ///< a group that a detached actor made lives at least as long as that actor
  int64_t wait_ms{};   ///< of kGetPlacementGroup; 0: answer now
  NodeId soft_target;  ///< of STRICT_PACK: preferred when it has room; nil for none
};
struct PlacementGroupReply {
  PlacementGroupId group;
  uint64_t version{};  ///< grows with each change: news and answers may overtake each other
  bool created{};
  std::string state;  ///< PENDING, CREATED, REMOVED, INFEASIBLE
  std::string json;
};

/// The bundles of one group that one node is to reserve, all or none.
struct ReserveBundles {
  PlacementGroupId group;
  uint64_t attempt{};
  std::map<int32_t, Resources> bundles;
  bool waits{};  ///< for room. Else it is answered at once: who holds a part must not wait for the rest
};
struct BundlesReserved {
  PlacementGroupId group;
  uint64_t attempt{};
  bool ok{};
};
struct GroupOrder {
  PlacementGroupId group;
  uint64_t attempt{};
  bool removed{};  ///< for good: what waits for the group is refused
  std::string why;
};

struct StartActor {
  ActorSpec spec;
  uint64_t incarnation{};
  std::string job_json;
};
struct StopActor {
  ActorId actor;
  uint64_t incarnation{};
  bool graceful{};
  Death reason;
};
/// Goes to the driver that `process` is or works for, as a line of its log.
struct Notice {
  WorkerId process;
  std::string text;
};
struct Publish {
  ControlTopic topic{};
  std::vector<WorkerId> subscribers;
  std::string body;
};

}  // namespace skate::wire
