// Messages between a process (driver or worker) and the daemon of its node.
//
// Registration runs over the daemon's Unix socket, in frames of a 4-byte little-endian length and the archive
// encoding of a struct: the process sends a frame of Hello, the daemon answers
// with a frame of Welcome and, beside it, the descriptors (SCM_RIGHTS) in the order: link segment, store
// index, store data, the daemon's eventfd. The socket then stays open as a sign of life and carries nothing
// more. All further messages travel on the process's link with its daemon (rpc/link.h), each as one record
// whose type is a MessageType and whose body is the archive encoding of the struct of the same name.
//
// Leases are level-triggered: a process says how many leases of a shape it wants in all (LeaseDemand), the
// daemon grants up to that, the process returns what it does not need. A repeated or late message does no
// harm.
#pragma once

#include "wire/types.h"

namespace skate::wire {

/// What both sides of a registration, and of a connection between daemons, must agree on.
inline constexpr const char kVersion[] = SKATE_VERSION;

enum class MessageType : uint16_t {
  // process -> daemon
  kLeaseDemand = 1,
  kLeaseReturn,
  kOpenLink,
  kControlCall,
  kKillWorker,
  kActorCreated,
  kStoreSpace,
  kRestoreObjects,
  kEraseObjects,
  kProcessExiting,
  kExitDeclined,  ///< empty body: an idle worker that owns something stays (answer to Exit with force off)
  kWake,          ///< empty body: a blocked worker has set or cleared its flag while CPUs are wanted
  kClaimObjects,
  kReleaseObjects,
  kHandOver,
  kWorkerReady,
  kFlushLogs,  ///< empty body: a driver is about to go and wants what its workers have printed up to now
  // daemon -> process
  kLeaseGrant = 64,
  kLeaseRecall,
  kLeaseRefused,
  kLinkOpened,
  kLinkRefused,
  kPeerDied,
  kControlReply,
  kControlEvent,
  kCreateActor,
  kExit,
  kStoreSpaceReply,
  kObjectsRestored,
  kLogLines,
  kConnectFailed,
  kObjectsClaimed,
  kHoldObjects,
  kUnholdObjects,
  kHandedOver,
  kLogsFlushed,  ///< empty body: kLogLines before it have all that was printed when kFlushLogs came
  // 256 and above: records between workers (wire/records.h)
};

enum class ProcessKind : uint8_t { kDriver, kWorker };

struct Hello {
  std::string version;  ///< must equal the daemon's
  ProcessKind kind{};
  int32_t pid{};
  uint64_t start_token{};  ///< of a worker: the number that the daemon gave when it started it
  std::string language;    ///< "python", "cpp"
  // of a driver
  std::string name_space;  ///< empty: a fresh anonymous one
  std::string job_json;  ///< {"entrypoint", "metadata", "runtime_env", "script_dir", "cwd", "sys_path", ...}
  bool log_to_driver{};
};

struct Welcome {
  std::string error;  ///< not empty: refused, and why
  WorkerId worker;
  NodeId node;
  JobId job;
  uint32_t process_slot{};  ///< this process's doorbell in the link segment
  uint32_t daemon_slot{};
  uint32_t daemon_link{};  ///< the link with the daemon; the process is side 1 of it
  uint32_t store_slot{};
  uint64_t store_capacity_bytes{};
  std::string session_dir;
  std::string name_space;
  std::string job_json;     ///< of the job that a worker serves first (as the driver gave it)
  std::string config_json;  ///< settings of the cluster: {"inline_limit_bytes", "spin_us", ...}
  std::string node_ip;
  std::string control_address;
  Resources node_resources;
  uint64_t first_sequence{};  ///< of this process's tasks: the kSequencesMax from it on are nobody else's
  std::map<std::string, std::string> node_labels;
};
/// How many tasks a process may number. What is in an id then tells the owner of what it names.
inline constexpr uint64_t kSequencesMax = uint64_t{1} << 40;

struct LeaseShape {
  JobId job;
  Resources resources;
  std::string runtime_env;
  std::string scheduling;
  std::string function;  ///< name, for reports and for `max_calls` workers of one function
  int32_t priority{};
};

struct LeaseDemand {
  uint64_t shape_id{};  ///< chosen by the process, unique within it
  LeaseShape shape;
  uint32_t wanted{};   ///< leases wanted in all, those held included
  uint64_t backlog{};  ///< tasks that wait, for reports and scaling
};

struct LeaseGrant {
  uint64_t shape_id{};
  uint64_t lease_id{};
  Address worker;
  int32_t worker_pid{};
  ResourceInstances instances;
};

struct LeaseRecall {
  uint64_t lease_id{};
};

/// The shape can never be granted here (no such resource, environment failed): its tasks must fail or wait.
struct LeaseRefused {
  uint64_t shape_id{};
  Death cause;
  bool infeasible_now{};  ///< true: keep the demand, a node that fits may come; report it, do not fail
};

struct LeaseReturn {
  uint64_t lease_id{};
  bool worker_exits{};  ///< the worker said that it ends (max_calls)
  bool suspect{};       ///< the owner saw it misbehave: check it before it is granted again
};

struct OpenLink {
  Address peer;
};

struct LinkOpened {
  Address peer;
  uint32_t link{};       ///< index in the link segment
  uint32_t side{};       ///< 0 or 1: which end this process is
  uint32_t peer_slot{};  ///< the peer's doorbell
  int32_t peer_pid{};
};

struct LinkRefused {
  Address peer;
  Death cause;  ///< kUnknown with a message when the peer was never known here
};

struct PeerDied {
  Address peer;
  Death cause;
};

/// A request to the control service, which the daemon passes on. Methods and bodies: control_messages.h.
struct ControlCall {
  uint64_t call_id{};
  uint16_t method{};
  std::string body;
};

struct ControlReply {
  uint64_t call_id{};
  bool ok{};
  uint8_t error_code{};
  std::string body;  ///< the reply, or the error's message
};

/// Pushed for what the process subscribed to (actors whose state it asked for).
struct ControlEvent {
  uint16_t topic{};
  std::string body;
};

struct KillWorker {
  Address worker;
  bool force{};
  std::string reason;
};

struct CreateActor {
  ActorSpec spec;
  uint64_t incarnation{};
  uint64_t lease_id{};
  ResourceInstances instances;
  std::string job_json;  ///< of the actor's job, as its driver gave it
};

struct ActorCreated {
  ActorId actor;
  uint64_t incarnation{};
  bool ok{};
  std::string error_value;  ///< the constructor's exception as a flat value
};

struct Exit {
  Death reason;
  bool force{};
};

/// Room is wanted for an object of `bytes`; the daemon spills and answers when it has made what it could.
struct StoreSpace {
  uint64_t call_id{};
  uint64_t bytes{};
};
struct StoreSpaceReply {
  uint64_t call_id{};
  bool ok{};
  uint8_t error_code{};  ///< kFull: memory and disk are used up; kIo: the disk refused
  std::string message;   ///< with sizes and the largest holders
};

struct RestoreObjects {
  uint64_t call_id{};
  std::vector<ObjectId> objects;
};
struct ObjectsRestored {
  uint64_t call_id{};
  std::vector<ObjectId> restored;
  std::vector<ObjectId> lost;
  std::string message;
};

/// Objects that were spilled and are no longer referenced (those in memory are erased by the owner itself).
struct EraseObjects {
  std::vector<ObjectId> objects;
};

// What a process owned when it ended (src/node/adoption). Refs keep naming their first owner: who learns that
// it has ended asks the daemon of its node instead.

/// An object that the daemon owns now, or shall own.
struct KeptObject {
  ObjectId id;
  bool stored{};  ///< in the object store; otherwise `value` is the flat value
  bool is_error{};
  uint64_t size_bytes{};
  std::string value;
  std::vector<std::pair<ObjectId, Address>> contained;  ///< refs inside, and their owners
};

/// The sender holds these objects of a process that has ended. Sent once, maybe empty, in answer to PeerDied,
/// and whenever it comes to hold more.
struct ClaimObjects {
  Address owner;
  std::vector<ObjectId> objects;
};
struct ObjectsClaimed {
  Address owner;
  std::vector<KeptObject> kept;
  std::vector<ObjectId> lost;
};
/// The sender holds these no longer.
struct ReleaseObjects {
  std::vector<ObjectId> objects;
};
/// The daemon holds these objects of the receiver, once more each / once less, for objects that contain them.
struct HoldObjects {
  std::vector<ObjectId> objects;
};
struct UnholdObjects {
  std::vector<ObjectId> objects;
};
/// From a process that is about to end: what it owns and others hold, or a part of that. It remains the owner
/// until it ends. Answered with HandedOver, which it awaits before it sends more.
struct HandOver {
  uint64_t call_id{};  ///< grows
  std::vector<KeptObject> objects;
};
/// `kept` false: there is no room. The daemon then forgets all that this process has handed over.
struct HandedOver {
  uint64_t call_id{};
  bool kept{};
};

/// A worker has set up its environment, or could not. Only then does it count as started.
struct WorkerReady {
  std::string failure;  ///< what its set-up raised; empty: it is ready
};

struct ProcessExiting {
  Death reason;  ///< kIntended with a message, kExited...
};

struct LogLine {
  int32_t pid{};
  bool is_stderr{};
  std::string source;  ///< task or actor name, e.g. "f" or "Counter"
  std::string ip;
  std::string text;
};
struct LogLines {
  std::vector<LogLine> lines;
  uint64_t dropped{};  ///< lines left out by the rate limit
};

}  // namespace skate::wire
