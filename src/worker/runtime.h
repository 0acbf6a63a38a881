// Runtime: a process's part in the cluster, the same for drivers and workers.
//
// It owns the process's objects (ObjectTable), the tasks that it submitted, its leases of workers and its
// clients of actors, and runs what others push to it. One lock guards all of this state; it is never held
// while calling out (Python, a blocking system call). Records are read by one thread at a time (Mailbox):
// the service thread, or a thread that waits. No thread of the runtime ever takes the GIL.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "store/client/client.h"
#include "wire/archive.h"
#include "wire/control_messages.h"
#include "wire/value.h"
#include "worker/mailbox.h"
#include "worker/peer.h"
#include "worker/task_record.h"

namespace skate::worker {

using Clock = Mailbox::Clock;

struct ConnectOptions {
  std::string socket_path;  ///< of the node daemon
  wire::Hello hello;
};

/// Somebody who waits for objects: a thread (on `word`), or a callback (`cookie`).
struct WaitWord {
  std::atomic<uint32_t> word{0};      ///< 1 once there is what was waited for
  std::atomic<uint32_t> sleeping{0};  ///< the thread sleeps on `word` (and not as the reader of links)
  void set() {
    word.store(1, std::memory_order_seq_cst);
    if (sleeping.load(std::memory_order_seq_cst) != 0) rpc::futex_wake_all(word);
  }
  bool is_set() const { return word.load(std::memory_order_acquire) != 0; }
};

struct Waiter {
  WaitWord done;
  uint32_t remaining = 0;
  bool until_error = false;  ///< an error ends the wait, however many remain
  uint64_t cookie = 0;
};

/// One result, item or put value, on its way out of this process.
struct OutgoingValue {
  BlobPtr inline_value;  ///< or, if null, the object was stored under its id
  uint64_t size_bytes = 0;
  bool is_error = false;
  std::vector<Entry*> contained;  ///< refs inside; each holds one pin, given to the runtime
};

/// A value ready to be decoded; holds what its bytes need.
struct ReadyValue {
  BlobPtr blob;
  std::shared_ptr<store::View> view;
  std::span<const uint8_t> bytes() const;
};

/// A function as received: the blob, and a place where the language keeps what it loaded from it.
struct FunctionSlot {
  FunctionId id;
  std::string blob;
  void* loaded = nullptr;
  uint64_t calls = 0;  ///< that have ended
};

/// A task that another process pushed here.
struct IncomingTask {
  wire::PushTask header;
  wire::StreamStart stream{};
  Peer* from = nullptr;
  BlobPtr record;
  std::string method, group, name, retry_classes;
  struct Arg {
    std::string_view keyword;
    std::span<const uint8_t> value;  ///< flat value inside `record`, or
    Entry* stored = nullptr;         ///< an object to fetch; pinned
  };
  std::vector<Arg> arguments;
  std::shared_ptr<FunctionSlot> function;
  std::shared_ptr<const wire::LeaseInfo> lease;
  std::atomic<bool> cancelled{false};
  std::optional<wire::CreateActor> create;   ///< set: run this constructor
  std::vector<Entry*> borrowed;              ///< refs that came inside its arguments; pinned until it ends
  uint64_t stream_items = 0;                 ///< yielded by now
  std::atomic<uint64_t> stream_consumed{0};  ///< the last StreamCredit
  int64_t begun_ns = 0;
  bool begun = false;
};

enum class WaitOutcome : uint8_t { kReady, kTimeout, kInterrupted };

class Runtime final : private OwnershipEffects {
 public:
  static Result<std::unique_ptr<Runtime>> connect(const ConnectOptions& options);
  ~Runtime() override;

  const wire::Welcome& welcome() const { return welcome_; }
  wire::Address self() const { return {welcome_.worker, welcome_.node}; }
  JobId job() const { return job_; }
  store::Client& store() { return *store_; }
  uint64_t inline_limit_bytes() const { return inline_limit_bytes_; }
  void set_inline_limit(uint64_t bytes) { inline_limit_bytes_ = bytes; }
  bool is_worker() const { return is_worker_; }
  /// The child of a fork may read what it holds; everything else must refuse.
  bool in_forked_child() const;

  // --- objects -------------------------------------------------------------------------------
  /// A fresh id for an object that this process puts.
  ObjectId next_put_id();
  /// The returned entry holds one handle for the caller.
  Entry* put(const ObjectId& id, OutgoingValue value);
  Entry* find_or_lost(const ObjectId& id);
  void add_handle(Entry* entry) { entry->handles.fetch_add(1, std::memory_order_relaxed); }
  void drop_handle(Entry* entry);
  void drop_handles(std::span<Entry* const> entries);
  void pin(Entry* entry);
  void unpin_all(std::span<Entry* const> entries);
  /// Handles for refs that a decoded value holds: one of the object `outer`, or (null) of an argument of
  /// `task`.
  std::vector<Entry*> adopt_refs(std::span<const wire::ObjectRecord> refs, Entry* outer, IncomingTask* task);
  std::vector<Entry*> adopt_refs(const wire::ValueView& view, Entry* outer, IncomingTask* task);
  wire::Address owner_of(const Entry* entry) const;
  /// Pins the objects of these refs, which somebody holds handles of.
  std::vector<Entry*> pin_known(std::span<const wire::ValueRef> refs);
  bool stopped() const { return stopping_.load(std::memory_order_acquire); }

  /// Waits until `count` of the entries are ready. Lends the CPU of a blocked task meanwhile.
  WaitOutcome wait(std::span<Entry* const> entries, size_t count, Clock::time_point until);
  /// Waits until all are ready, or one is an error.
  WaitOutcome wait_for_all(std::span<Entry* const> entries, Clock::time_point until);
  /// The value of a ready entry; fetches it from the store, restores it from disk (may block).
  Result<ReadyValue> read(Entry* entry, Clock::time_point until);
  /// Makes `cookie` appear in next_callback() once the entry is ready.
  void notify_when_ready(Entry* entry, uint64_t cookie);
  void notify_when_item(Stream& stream, uint64_t cookie);
  /// Blocks until a callback is due; nullopt when the runtime stops.
  std::optional<uint64_t> next_callback();
  /// Room for an object of `size` in the store, spilling others if need be (may block).
  Result<store::Writable> create_stored(const ObjectId& id, uint64_t size);

  // --- tasks ---------------------------------------------------------------------------------
  std::shared_ptr<const Function> define_function(std::string blob, std::string name);
  struct Submitted {
    std::vector<Entry*> returns;  ///< one handle each for the caller
    std::shared_ptr<Stream> stream;
  };
  Submitted submit(std::shared_ptr<const TaskSpec> spec, std::vector<Argument> arguments,
                   std::vector<Entry*> pinned, const TaskId& parent);
  void cancel(Entry* entry, bool force, bool recursive);
  /// Next item of a stream, with a handle; nullptr with kReady: the stream has ended.
  WaitOutcome next_item(Stream& stream, Clock::time_point until, Entry** item);
  enum class StreamState : uint8_t { kWaiting, kItem, kEnded };
  StreamState stream_state(Stream& stream);
  void abandon_stream(const std::shared_ptr<Stream>& stream);

  // --- actors --------------------------------------------------------------------------------
  /// Registers the actor (blocks for control's answer when it is named), places it when the arguments are
  /// ready.
  struct CreatedActor {
    ActorId actor;
    Entry* handle = nullptr;  ///< counts handles; null for actors that are not counted
    wire::ActorInfo info;
    bool existed = false;
  };
  Result<CreatedActor> create_actor(wire::ActorSpec spec, std::vector<Argument> arguments,
                                    std::vector<Entry*> pinned, bool get_if_exists,
                                    const std::function<bool()>& interrupted);
  Result<Submitted> submit_to_actor(const ActorId& actor, Entry* handle, std::shared_ptr<const TaskSpec> spec,
                                    std::vector<Argument> arguments, std::vector<Entry*> pinned,
                                    const TaskId& parent);
  void kill_actor(const ActorId& actor, bool no_restart);
  /// Takes over what control told of an actor found by name.
  void adopt_actor(const wire::ActorInfo& info);
  /// What travelled with a handle: the settings of an actor, not its state.
  void learn_actor(const wire::ActorInfo& info);

  /// The last known state, asking control the first time.
  Result<wire::ActorInfo> actor_info(const ActorId& actor, Clock::time_point until);

  // --- control -------------------------------------------------------------------------------
  /// `interrupted` is asked now and then; kCancelled once it says so.
  Result<std::string> control_call(wire::ControlMethod method, std::string body, Clock::time_point until,
                                   const std::function<bool()>& interrupted = {});
  /// Ends next_logs(): it returns what the job's workers have printed up to now, then nothing. False: the
  /// daemon did not send all of that by `until`.
  bool flush_logs(Clock::time_point until);
  std::optional<wire::LogLines> next_logs(Clock::time_point until);

  // --- execution (workers) -------------------------------------------------------------------
  /// The next task to run of `group`; null when the worker shall end. Waits. One thread (the main one) may
  /// call it with `reads`, which lets it read the links itself.
  std::shared_ptr<IncomingTask> next_task(const std::string& group, bool reads);
  /// For event loops: tasks that wait, without blocking; `event_fd` becomes readable when there are more.
  std::vector<std::shared_ptr<IncomingTask>> take_tasks();
  void set_event_fd(int fd);
  /// For the loop's thread, before it sleeps: reads the links, and spins for the next record if that has paid
  /// lately.
  void look(Clock::time_point until);
  void serve_group(const std::string& group);
  /// Sends the results. Then the task is forgotten here.
  void finish(const std::shared_ptr<IncomingTask>& task, wire::TaskStatus status,
              std::vector<OutgoingValue> results, bool worker_exits);
  void finish_actor_creation(const std::shared_ptr<IncomingTask>& task, bool ok, BlobPtr error);
  /// Sends one item; false when the consumer is gone and the generator should end.
  bool send_item(const std::shared_ptr<IncomingTask>& task, OutgoingValue value);
  ObjectId item_id(const IncomingTask& task) const;
  /// True when the owner has the next item from an attempt before; it counts as yielded then.
  bool skip_item(IncomingTask& task) const;
  /// True when the consumer has room for another item, or needs none.
  bool may_send_item(const IncomingTask& task) const;
  WaitOutcome wait_for_credit(const std::shared_ptr<IncomingTask>& task);
  /// Called (any thread, no lock held) when a begun task is cancelled.
  void on_cancel(std::function<void(const std::shared_ptr<IncomingTask>&, bool recursive)> handler);
  void cancel_children(const TaskId& parent, bool force);
  bool should_exit() const { return exiting_.load(std::memory_order_acquire); }
  wire::Death exit_reason();
  /// Threaded and asyncio actors need their calls at once, not at the next task boundary.
  void read_calls_at_once() { mailbox_->set_service_threshold(rpc::Urgency::kTask); }
  void set_max_concurrency(uint32_t n) { max_concurrency_ = n; }
  /// The worker's environment is set up, or (`failure` says why) cannot be: then the daemon ends the worker.
  void report_ready(std::string failure);
  void request_exit(wire::Death reason);
  void set_source(std::string_view name);
  /// Returns when the process may end (or must): the daemon has what others hold of it, and nothing that
  /// only it can do is due. May take long; `why` goes into what is printed if it stays meanwhile.
  void leave(const std::string& why);
  /// Calls keep their group's name although no thread serves it apart (an event loop sorts them).
  void keep_groups() { keep_groups_ = true; }
  void begin_active() { mailbox_->begin_active(); }
  void end_active() { mailbox_->end_active(); }

  /// Ends threads; a driver says good-bye to its daemon first.
  void stop();

 private:
  explicit Runtime(wire::Welcome welcome, bool is_worker);

  // reading (runtime.cc)
  void service_main();
  size_t read_links();
  void read_one(uint32_t link_index);
  void dispatch(Peer* from, uint16_t type, std::span<const uint8_t> body);
  void dispatch_daemon(uint16_t type, std::span<const uint8_t> body);
  void send(Peer* peer, uint16_t type, rpc::Urgency urgency,
            std::initializer_list<std::span<const uint8_t>> parts);
  template <class T>
  void send_flat(Peer* peer, wire::RecordType type, rpc::Urgency urgency, const T& value) {
    send(peer, static_cast<uint16_t>(type), urgency,
         {std::span(reinterpret_cast<const uint8_t*>(&value), sizeof(T))});
  }
  template <class Message>
  void send_daemon(wire::MessageType type, const Message& message) {
    send_daemon_body(static_cast<uint16_t>(type), wire::encode(message));
  }
  void send_daemon_body(uint16_t type, const std::string& body);
  void flush();
  Peer* peer_of(const wire::Address& address);
  void link_opened(const wire::LinkOpened& opened);
  void send_heir_requests();
  void objects_claimed(const wire::ObjectsClaimed& answer);
  void take_kept(Entry* entry, const wire::KeptObject& kept);
  void peer_died(const wire::Address& address, const wire::Death& death);
  Clock::time_point timers();
  void after_reading();

  // waiting (wait.cc)
  WaitOutcome wait_for_few(std::span<Entry* const> entries, size_t count, Clock::time_point until);
  WaitOutcome wait_on_each(std::span<Entry* const> entries, size_t count, Clock::time_point until,
                           bool until_error);
  void fire(std::vector<Waiter*>& waiters, bool is_error = false);
  WaitOutcome block_until(WaitWord& word, Clock::time_point until);
  void lend_cpu();
  void take_cpu_back();
  void resolved(Entry* entry);
  void resolve_inline(Entry* entry, BlobPtr value, bool is_error);
  void request_value(Entry* entry);
  Entry* adopt(const ObjectId& id, Peer* owner, Entry* outer, IncomingTask* task,
               std::vector<Entry*>& unknown);
  void register_adopted(const std::vector<Entry*>& unknown, Entry* outer);
  void answer_get(Peer* to, Entry* entry);
  struct ParsedResult {
    wire::ResultHeader header;
    std::vector<wire::ObjectRecord> contained;
    std::span<const uint8_t> value;
  };
  static std::optional<ParsedResult> parse_result(wire::RecordReader& reader);
  void encode_result(std::string& out, const OutgoingValue& value) const;
  void give_back_results(const TaskRecord& task, Peer* from, const wire::TaskDone& done,
                         wire::RecordReader& reader);
  void accept_result(Entry* entry, const ParsedResult& result, Peer* from, std::vector<Entry*>& foreign);
  void take_over(const std::vector<Entry*>& foreign, Peer* from, uint64_t untaken);

  // submitting (submit.cc)
  TaskRecord* new_task();
  TaskRecord* task_of(uint64_t token);
  void free_task(TaskRecord* task);
  Submitted make_returns(TaskRecord* task);
  void link_dependencies(TaskRecord* task);
  void unlink_dependencies(TaskRecord* task);
  void dependency_ready(TaskRecord* task);
  void enqueue(TaskRecord* task);
  Shape* shape_of(const TaskSpec& spec);
  void pump(Shape* shape);
  void update_demand(Shape* shape, bool exact);
  void push(TaskRecord* task, Peer* worker, uint32_t claim);
  void encode_arguments(wire::RecordWriter& writer, const TaskRecord& task) const;
  void push_to_lease(TaskRecord* task, Lease* lease);
  bool take_back(TaskRecord* task);
  void take_back_unbegun(Lease* lease);
  void lease_granted(const wire::LeaseGrant& grant);
  void drop_lease(Lease* lease);
  void return_lease(Lease* lease, bool worker_exits);
  void task_done(Peer* from, std::span<const uint8_t> body);
  void complete(TaskRecord* task, Peer* from, const wire::TaskDone& done, wire::RecordReader& reader);
  void end_task(TaskRecord* task);
  void fail_task(TaskRecord* task, BlobPtr error);
  void attempt_failed(TaskRecord* task, const wire::Death& death, bool begun);
  void erase_untold(const TaskRecord& task);
  void remove_in_flight(TaskRecord* task);
  void stream_item(Peer* from, std::span<const uint8_t> body);
  void end_stream(TaskRecord* task, uint64_t total, BlobPtr error);
  void cancel_task(TaskRecord* task, bool force, bool recursive);

  // actors (actors.cc)
  ActorClient* client_of(const ActorId& actor);
  void actor_event(const wire::ActorInfo& info);
  void pump_actor(ActorClient* client);
  void actor_lost(ActorClient* client, const wire::Death& death);
  void fail_actor_calls(ActorClient* client);
  BlobPtr actor_error(const ActorClient& client, const wire::Death& death, bool gone) const;
  void place_actor(TaskRecord* task, const wire::Death* failure);
  void ask_actor(ActorClient* client);
  void actor_refused(const ActorId& actor, wire::DeathKind kind, std::string why);
  void call_control(wire::ControlMethod method, std::string body,
                    std::function<void(const wire::ControlReply&)> then);

  // executing (execute.cc)
  void accept_task(Peer* from, std::span<const uint8_t> body);
  void cancel_incoming(Peer* from, std::span<const uint8_t> body);
  bool begin(IncomingTask& task);
  void answer(IncomingTask& task, wire::TaskStatus status, std::vector<OutgoingValue> results,
              bool worker_exits);
  bool parse_arguments(IncomingTask& task, wire::RecordReader& reader, uint32_t count);
  std::shared_ptr<IncomingTask> pop_task(const std::string& group);
  void release_arguments(IncomingTask& task);
  void forget_task(IncomingTask& task);
  void give_back_unbegun();
  bool register_leftovers(IncomingTask& task);
  void abandon_stored(const ObjectId& id);
  uint64_t number_untaken(const OutgoingValue& value, const Peer* to, uint64_t number);
  void export_contained(const std::vector<Entry*>& contained, Peer* to, uint64_t untaken);

  // leaving (leave.cc)
  bool may_hand_over() const;
  void leave_step();
  void handed_over(const wire::HandedOver& answer);
  void asked_to_leave(const wire::Exit& exit);
  void stay();
  void begin_exit(wire::Death reason);

  // OwnershipEffects
  void register_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void release_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void pins_released(Peer* submitter, uint64_t token) override;
  void results_taken(Peer* worker, uint64_t token) override;
  void erase_stored(const ObjectId& id) override;
  void actor_out_of_scope(const ObjectId& handle) override;
  void object_gone(Entry& entry) override;

  wire::Welcome welcome_;
  const bool is_worker_;
  JobId job_;
  UniqueFd daemon_socket_;
  UniqueFd daemon_event_fd_;
  std::unique_ptr<rpc::Segment> segment_;
  std::unique_ptr<store::Client> store_;
  std::unique_ptr<Mailbox> mailbox_;
  uint64_t inline_limit_bytes_ = 100 * 1024;

  mutable std::mutex mutex_;
  ObjectTable objects_;
  std::map<WorkerId, std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> links_;  // by link index
  const uint32_t forks_before_;
  Peer daemon_;
  Peer self_;  // an actor's calls of itself; its records wait in self_records_
  std::deque<Peer::Waiting> self_records_;
  std::vector<Peer*> dirty_;
  struct HeirRequest {
    Peer* owner;  // dead
    bool claim;   // otherwise a release
    ObjectId id;  // nil: the answer that the daemon waits for, though there is nothing to claim
  };
  std::vector<HeirRequest> heir_requests_;  // in order, until flush
  std::map<std::pair<Peer*, uint64_t>, std::vector<Entry*>> untaken_results_;
  uint64_t untaken_number_ = 0;

  std::deque<TaskRecord> tasks_;
  std::vector<uint32_t> free_tasks_;
  uint64_t next_sequence_ = 0;
  TaskId put_task_;
  uint32_t next_put_ = 0;
  std::map<FunctionId, std::shared_ptr<const Function>> functions_;
  std::map<std::string, std::unique_ptr<Shape>> shapes_;
  std::map<uint64_t, Shape*> shapes_by_id_;
  std::map<uint64_t, std::unique_ptr<Lease>> leases_;
  uint32_t pipelined_ = 0;   // leases with more than one task in flight
  std::set<Shape*> hungry_;  // shapes with queued tasks
  std::map<ActorId, std::unique_ptr<ActorClient>> actors_;
  boost::unordered_flat_map<ObjectId, std::vector<TaskRecord*>, IdHash<ObjectId>> dependents_;

  uint64_t next_call_ = 1;
  std::map<uint64_t, std::function<void(const wire::ControlReply&)>> calls_;
  struct StoreReply {
    bool done = false;
    bool ok = false;
    ErrorCode code{};
    std::string message;
    std::vector<ObjectId> lost;
  };
  std::map<uint64_t, StoreReply*> store_calls_;
  std::condition_variable replies_;

  std::deque<uint64_t> callbacks_;
  std::condition_variable callbacks_ready_;
  std::deque<wire::LogLines> logs_;
  bool logs_flushed_ = false;
  bool logs_over_ = false;  ///< nobody wants those that come now
  std::condition_variable logs_ready_;

  std::map<std::string, std::deque<std::shared_ptr<IncomingTask>>> run_queues_;
  std::map<std::string, std::condition_variable> run_ready_;
  std::map<std::pair<Peer*, uint64_t>, std::shared_ptr<IncomingTask>> running_;
  std::map<FunctionId, std::shared_ptr<FunctionSlot>> function_slots_;
  std::function<void(const std::shared_ptr<IncomingTask>&, bool)> cancel_handler_;
  std::vector<std::pair<std::shared_ptr<IncomingTask>, bool>> cancels_due_;
  std::atomic<int> event_fd_{-1};
  std::atomic<Clock::time_point> looked_until_{};  ///< the event loop sleeps since; zero: it does not
  std::atomic<bool> keep_groups_{false};
  /// What others hold keeps this process until its daemon has it.
  enum class Leaving : uint8_t {
    kNo,
    kWanted,   ///< something is due that only it can do
    kOffered,  ///< a HandOver awaits its answer
    kRefused,  ///< the daemon has no room
    kMay,
  };
  Leaving leaving_ = Leaving::kNo;
  std::optional<wire::Death> leaving_idle_;  ///< the daemon asked, and takes a no
  uint64_t hand_over_call_ = 0;
  std::condition_variable leaving_changed_;
  std::vector<Waiter*> any_waiters_;  // wait for one of many: woken by every object
  uint32_t max_concurrency_ = 1;
  uint64_t actor_incarnation_ = 0;
  bool hosts_actor_ = false;
  std::atomic<uint32_t> blocked_threads_{0};
  wire::Death exit_reason_;
  std::atomic<bool> exiting_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> credit_word_{0};
  std::thread service_;
};

}  // namespace skate::worker
