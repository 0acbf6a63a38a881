#include "worker/runtime.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

#include "wire/archive.h"
#include "worker/values.h"

namespace skate::worker {

using wire::MessageType;
using wire::RecordType;

namespace {

constexpr size_t kRecordsPerTurn = 256;
constexpr uint32_t kWelcomeBytesMax = 4 << 20;

// How many forks lie between this process and the first of its line that connected. A count, since getpid is
// a system call on every use of a ref.
std::atomic<uint32_t> forks{0};
void count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  SKATE_ASSERT(registered == 0, "pthread_atfork failed");
}

std::span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

Result<void> write_frame(int fd, const std::string& body) {
  uint32_t size = static_cast<uint32_t>(body.size());
  std::string frame(reinterpret_cast<const char*>(&size), sizeof size);
  frame += body;
  size_t done = 0;
  while (done < frame.size()) {
    ssize_t n = ::send(fd, frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("cannot write to the node daemon");
    }
    done += static_cast<size_t>(n);
  }
  return {};
}

/// Reads one frame and the descriptors that come with it.
Result<std::string> read_frame(int fd, std::vector<UniqueFd>& fds) {
  std::string received;
  bool descriptors_lost = false;
  size_t wanted = sizeof(uint32_t);
  bool have_size = false;
  while (received.size() < wanted) {
    char buffer[16384];
    iovec part{buffer, std::min(sizeof buffer, wanted - received.size())};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 8)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot read from the node daemon");
    if (n == 0)
      return Error{ErrorCode::kUnavailable, "the node daemon closed the connection during registration"};
    descriptors_lost |= (message.msg_flags & MSG_CTRUNC) != 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int got;
        std::memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof got);
        fds.emplace_back(got);
      }
    }
    received.append(buffer, static_cast<size_t>(n));
    if (!have_size && received.size() == sizeof(uint32_t)) {
      uint32_t size;
      std::memcpy(&size, received.data(), sizeof size);
      if (size > kWelcomeBytesMax)
        return Error{ErrorCode::kCorrupt, "the node daemon's greeting is malformed"};
      have_size = true;
      wanted += size;
    }
  }
  if (descriptors_lost) {  // the kernel drops those for which the process has no number left
    errno = EMFILE;
    return errno_error("cannot take the object store's descriptors from the node daemon");
  }
  return received.substr(sizeof(uint32_t));
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

std::span<const uint8_t> ReadyValue::bytes() const {
  if (view) return view->span();
  return blob ? blob->bytes() : std::span<const uint8_t>{};
}

Runtime::Runtime(wire::Welcome welcome, bool is_worker)
    : welcome_(std::move(welcome)),
      is_worker_(is_worker),
      job_(welcome_.job),
      objects_(*this),
      links_(rpc::kLinksMax, nullptr),
      forks_before_(forks.load(std::memory_order_relaxed)) {
  next_sequence_ = welcome_.first_sequence;
  put_task_ = TaskId::normal(next_sequence_++, welcome_.worker, job_);
  run_queues_[""];
}

Result<std::unique_ptr<Runtime>> Runtime::connect(const ConnectOptions& options) {
  raise_descriptor_limit();
  count_forks();
  UniqueFd socket_fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket_fd) return errno_error("cannot make a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options.socket_path.size() >= sizeof address.sun_path)
    return Error{ErrorCode::kInvalid, "the path of the node daemon's socket is too long (" +
                                          options.socket_path + "): choose a shorter temporary directory"};
  std::memcpy(address.sun_path, options.socket_path.c_str(), options.socket_path.size() + 1);
  if (::connect(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return errno_error("no node daemon answers at " + options.socket_path);
  SKATE_TRY(write_frame(socket_fd.get(), wire::encode(options.hello)));
  std::vector<UniqueFd> fds;
  SKATE_TRY_ASSIGN(std::string frame, read_frame(socket_fd.get(), fds));
  SKATE_TRY_ASSIGN(wire::Welcome welcome, wire::decode<wire::Welcome>(frame));
  if (!welcome.error.empty()) return Error{ErrorCode::kDenied, welcome.error};
  if (fds.size() != 4) return Error{ErrorCode::kCorrupt, "the node daemon sent no descriptors"};
  if (welcome.process_slot >= rpc::kSlotsMax || welcome.daemon_slot >= rpc::kSlotsMax ||
      welcome.daemon_link >= rpc::kLinksMax)
    return Error{ErrorCode::kCorrupt, "the node daemon's greeting is malformed"};

  bool is_worker = options.hello.kind == wire::ProcessKind::kWorker;
  std::unique_ptr<Runtime> runtime(new Runtime(std::move(welcome), is_worker));
  SKATE_TRY_ASSIGN(runtime->segment_, rpc::Segment::attach(std::move(fds[0])));
  SKATE_TRY_ASSIGN(store::Client client,
                   store::Client::open(fds[1].get(), fds[2].get(), runtime->welcome_.store_slot));
  runtime->store_ = std::make_unique<store::Client>(std::move(client));
  runtime->daemon_event_fd_ = std::move(fds[3]);
  runtime->daemon_socket_ = std::move(socket_fd);
  runtime->mailbox_ = std::make_unique<Mailbox>(*runtime->segment_, runtime->welcome_.process_slot);
  Peer& daemon = runtime->daemon_;
  daemon.state = Peer::State::kOpen;
  runtime->self_.state = Peer::State::kOpen;
  runtime->self_.address = runtime->self();
  daemon.link = std::make_unique<rpc::Link>(*runtime->segment_, runtime->welcome_.daemon_link, 1,
                                            runtime->welcome_.daemon_slot, runtime->daemon_event_fd_.get());
  runtime->links_[runtime->welcome_.daemon_link] = &daemon;

  sigset_t all, before;  // native threads take no signals: they are the program's
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  runtime->service_ = std::thread([self = runtime.get()] { self->service_main(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return runtime;
}

Runtime::~Runtime() { stop(); }

void Runtime::stop() {
  if (in_forked_child()) {
    if (service_.joinable()) service_.detach();  // the thread is the parent's
    return;
  }
  if (!stopping_.exchange(true)) {
    {
      std::lock_guard lock(mutex_);
      send_daemon(MessageType::kProcessExiting, wire::ProcessExiting{exit_reason_});
      flush();
    }
    callbacks_ready_.notify_all();
    logs_ready_.notify_all();
    replies_.notify_all();
    mailbox_->poke_service();
  }
  if (service_.joinable()) service_.join();
}

bool Runtime::in_forked_child() const { return forks.load(std::memory_order_relaxed) != forks_before_; }

// --- reading ---------------------------------------------------------------------------------

void Runtime::service_main() {
  pthread_setname_np(pthread_self(), "skate-service");
  while (!stopping_.load(std::memory_order_acquire)) {
    uint32_t ticket = mailbox_->service_ticket();
    while (mailbox_->try_enter()) {
      const bool news = read_links() != 0;
      const Clock::time_point looked = looked_until_.exchange(Clock::time_point{});
      if (news && looked != Clock::time_point{}) mailbox_->slept(Clock::now() - looked);
      if (!mailbox_->leave()) break;
    }
    Clock::time_point until = timers();
    store_->look_at_children();
    pollfd hangup{daemon_socket_.get(), 0, 0};
    if (poll(&hangup, 1, 0) == 1 && (hangup.revents & (POLLHUP | POLLERR)) != 0) {
      std::lock_guard lock(mutex_);
      exit_reason_ = {wire::DeathKind::kNodeLost, 0, 0, 0, "the node daemon is gone", {}, {}};
      exiting_.store(true, std::memory_order_release);
      if (is_worker_) _exit(1);  // its objects, leases and owner's links went with the daemon
      daemon_.state = Peer::State::kDead;
      std::vector<std::pair<uint64_t, std::function<void(const wire::ControlReply&)>>> calls(calls_.begin(),
                                                                                             calls_.end());
      calls_.clear();
      for (auto& [id, then] : calls)
        then({id, false, static_cast<uint8_t>(ErrorCode::kUnavailable), "the node daemon is gone"});
      for (auto& [address, peer] : peers_)
        if (peer->state != Peer::State::kDead) peer_died(peer->address, exit_reason_);
      flush();
      for (auto& [id, reply] : store_calls_) {
        reply->done = true;
        reply->code = ErrorCode::kUnavailable;
        reply->message = "the node daemon is gone";
      }
      replies_.notify_all();
      stopping_.store(true);
      callbacks_ready_.notify_all();
      logs_ready_.notify_all();
      return;
    }
    mailbox_->sleep_as_service(ticket, until);
  }
}

void Runtime::look(Clock::time_point until) {
  if (!mailbox_->try_enter()) return;
  mailbox_->begin_active();
  size_t count = read_links();
  while (count == 0 && mailbox_->spin(until)) count = read_links();
  mailbox_->end_active();
  looked_until_ = count == 0 ? Clock::now() : Clock::time_point{};
  while (mailbox_->leave() && mailbox_->try_enter()) read_links();
}

size_t Runtime::read_links() {
  size_t count = 0;
  std::vector<uint32_t> ready;
  rpc::take_ready(mailbox_->bell(), [&](uint32_t link) { ready.push_back(link); });
  if (ready.empty()) return 0;
  {
    std::lock_guard lock(mutex_);
    for (uint32_t link : ready) {
      read_one(link);
      ++count;
    }
    flush();
  }
  after_reading();
  return count;
}

void Runtime::read_one(uint32_t link_index) {
  Peer* peer = links_[link_index];
  if (peer == nullptr || !peer->link) return;
  bool daemon = peer == &daemon_;
  Result<size_t> handled = peer->link->receive(
      [&](uint16_t type, std::span<const uint8_t> body) {
        if (daemon)
          dispatch_daemon(type, body);
        else
          dispatch(peer, type, body);
      },
      kRecordsPerTurn);
  if (!handled) {
    if (!daemon)
      peer_died(peer->address, {wire::DeathKind::kUnknown, 0, 0, 0, handled.error().message, {}, {}});
    return;
  }
  if (!peer->link) return;
  // The turn's bound was reached: mark the link for the next turn.
  if (*handled == kRecordsPerTurn && !peer->link->empty())
    rpc::ring(mailbox_->bell(), link_index, rpc::Urgency::kLazy, -1);
}

void Runtime::after_reading() {
  std::vector<std::pair<std::shared_ptr<IncomingTask>, bool>> due;
  std::function<void(const std::shared_ptr<IncomingTask>&, bool)> handler;
  {
    std::lock_guard lock(mutex_);
    if (cancels_due_.empty()) return;
    due.swap(cancels_due_);
    handler = cancel_handler_;
  }
  if (handler)
    for (auto& [task, recursive] : due) handler(task, recursive);
}

void Runtime::dispatch(Peer* from, uint16_t type, std::span<const uint8_t> body) {
  wire::RecordReader reader(body);
  switch (static_cast<RecordType>(type)) {
    case RecordType::kDefineFunction: {
      auto define = reader.get<wire::DefineFunction>();
      if (!reader.ok() || define.number > (1u << 24)) return;
      std::shared_ptr<FunctionSlot>& slot = function_slots_[define.function];
      if (!slot) {
        slot = std::make_shared<FunctionSlot>();
        slot->id = define.function;
        std::span<const uint8_t> blob = body.subspan(reader.offset());
        slot->blob.assign(reinterpret_cast<const char*>(blob.data()), blob.size());
      }
      if (from->functions.size() <= define.number) from->functions.resize(define.number + 1);
      from->functions[define.number] = slot;
      return;
    }
    case RecordType::kLeaseInfo:
      if (auto info = wire::decode<wire::LeaseInfo>(body))
        from->lease = std::make_shared<const wire::LeaseInfo>(std::move(*info));
      return;
    case RecordType::kPushTask: return accept_task(from, body);
    case RecordType::kTaskDone: return task_done(from, body);
    case RecordType::kTaskReturned: {
      auto returned = reader.get<wire::TaskReturned>();
      TaskRecord* task = task_of(returned.token);
      if (!reader.ok() || task == nullptr || task->state != TaskState::kPushed || task->worker != from)
        return;
      remove_in_flight(task);
      enqueue(task);
      return;
    }
    case RecordType::kStreamItem: return stream_item(from, body);
    case RecordType::kStreamCredit: {
      auto credit = reader.get<wire::StreamCredit>();
      auto found = running_.find({from, credit.token});
      if (!reader.ok() || found == running_.end()) return;
      found->second->stream_consumed.store(credit.consumed, std::memory_order_release);
      credit_word_.fetch_add(1, std::memory_order_seq_cst);
      rpc::futex_wake_all(credit_word_);
      if (event_fd_ >= 0) {
        uint64_t one = 1;
        [[maybe_unused]] ssize_t n = write(event_fd_, &one, sizeof one);
      }
      return;
    }
    case RecordType::kCancelTask: return cancel_incoming(from, body);
    case RecordType::kCancelObject: {
      auto cancel = reader.get<wire::CancelObject>();
      if (!reader.ok()) return;
      Entry* entry = objects_.find(cancel.object);
      if (entry != nullptr && entry->task != nullptr)
        cancel_task(entry->task, cancel.force != 0, cancel.recursive != 0);
      return;
    }
    case RecordType::kGetObject: {
      auto get = reader.get<wire::GetObject>();
      if (!reader.ok()) return;
      Entry* entry = objects_.find(get.object);
      if (entry == nullptr || entry->owner != nullptr) {
        std::string out;
        wire::RecordWriter writer(out);
        writer.put(wire::ObjectValue{get.object, wire::ValueStatus::kGone, {}});
        send(from, static_cast<uint16_t>(RecordType::kObjectValue), rpc::Urgency::kUrgent, {as_bytes(out)});
        return;
      }
      if (entry->ready()) return answer_get(from, entry);
      if (!entry->remote_waiters) entry->remote_waiters = std::make_unique<std::vector<Peer*>>();
      entry->remote_waiters->push_back(from);
      return;
    }
    case RecordType::kObjectValue: {
      auto answer = reader.get<wire::ObjectValue>();
      if (!reader.ok()) return;
      Entry* entry = objects_.find(answer.object);
      // Too late, but the grants that came with it are given back.
      if (entry != nullptr && (entry->owner != from || entry->ready())) entry = nullptr;
      if (answer.status == wire::ValueStatus::kGone) {
        if (entry == nullptr) return;
        resolve_inline(entry, lost_object_error(entry->id, "its owner has freed it"), true);
        return;
      }
      reader.align();
      std::optional<ParsedResult> result = parse_result(reader);
      if (!result) return;
      std::vector<Entry*> contained;
      accept_result(entry, *result, from, contained);
      if (!contained.empty()) {
        objects_.pin(entry);
        Obligation unpin{Obligation::Kind::kUnpin, nullptr, 0, entry->id};
        if (objects_.register_then(contained, from, unpin)) objects_.unpin(entry);
      }
      return;
    }
    case RecordType::kRegisterRef: {
      auto message = reader.get<wire::RefMessage>();
      constexpr uint32_t kGrantsMax = 1u << 20;
      if (!reader.ok() || message.count == 0 || message.count > kGrantsMax) return;
      Entry* entry = objects_.find(message.object);
      if (entry != nullptr && entry->owner == nullptr)
        objects_.grant(entry, from, message.count);
      else
        message.count = 0;  // nothing was granted
      send_flat(from, RecordType::kRefRegistered, rpc::Urgency::kUrgent, message);
      return;
    }
    case RecordType::kRefRegistered: {
      auto message = reader.get<wire::RefMessage>();
      if (!reader.ok()) return;
      // A grant that was not given must not be given back: it would be taken for one that was.
      if (Entry* entry = objects_.find(message.object); message.count == 0 && entry != nullptr &&
                                                        entry->grants_in > 0 &&
                                                        objects_.last_answer(message.object))
        --entry->grants_in;
      objects_.registered(message.object);
      return;
    }
    case RecordType::kReleaseRef: {
      auto message = reader.get<wire::RefMessage>();
      if (reader.ok()) objects_.take_back(message.object, from, message.count);
      return;
    }
    case RecordType::kPinsReleased: {
      auto message = reader.get<wire::TokenMessage>();
      TaskRecord* task = task_of(message.token);
      if (!reader.ok() || task == nullptr || !task->holding || task->worker != from) return;
      task->holding = false;
      end_task(task);
      return;
    }
    case RecordType::kResultsTaken: {
      auto message = reader.get<wire::TokenMessage>();
      auto found = untaken_results_.find({from, message.token});
      if (!reader.ok() || found == untaken_results_.end()) return;
      std::vector<Entry*> held = std::move(found->second);
      untaken_results_.erase(found);
      for (Entry* entry : held) objects_.unpin(entry);
      return;
    }
  }
}

void Runtime::dispatch_daemon(uint16_t type, std::span<const uint8_t> body) {
  switch (static_cast<MessageType>(type)) {
    case MessageType::kLeaseGrant:
      if (auto grant = wire::decode<wire::LeaseGrant>(body)) lease_granted(*grant);
      return;
    case MessageType::kLeaseRecall:
      if (auto recall = wire::decode<wire::LeaseRecall>(body)) {
        auto found = leases_.find(recall->lease_id);
        if (found == leases_.end()) return;
        Lease* lease = found->second.get();
        lease->recalled = true;
        take_back_unbegun(lease);
        if (lease->in_flight.empty()) return_lease(lease, false);
      }
      return;
    case MessageType::kLeaseRefused:
      if (auto refused = wire::decode<wire::LeaseRefused>(body)) {
        auto found = shapes_by_id_.find(refused->shape_id);
        if (found == shapes_by_id_.end() || refused->infeasible_now) return;
        std::deque<TaskRecord*> queue;
        queue.swap(found->second->queue);
        found->second->demand = 0;
        for (TaskRecord* task : queue) {
          fail_task(task, task_error(refused->cause, task->spec->name));
        }
      }
      return;
    case MessageType::kLinkOpened:
      if (auto opened = wire::decode<wire::LinkOpened>(body)) link_opened(*opened);
      return;
    case MessageType::kLinkRefused:
      if (auto refused = wire::decode<wire::LinkRefused>(body)) peer_died(refused->peer, refused->cause);
      return;
    case MessageType::kPeerDied:
      if (auto died = wire::decode<wire::PeerDied>(body)) {
        peer_died(died->peer, died->cause);
        if (Peer* peer = peer_of(died->peer)) heir_requests_.push_back({peer, true, ObjectId()});
      }
      return;
    case MessageType::kObjectsClaimed:
      if (auto answer = wire::decode<wire::ObjectsClaimed>(body)) objects_claimed(*answer);
      return;
    case MessageType::kHoldObjects:
      if (auto held = wire::decode<wire::HoldObjects>(body))
        for (const ObjectId& id : held->objects)
          if (Entry* entry = objects_.find(id); entry != nullptr && entry->owner == nullptr)
            objects_.grant(entry, &daemon_, 1);
      return;
    case MessageType::kUnholdObjects:
      if (auto held = wire::decode<wire::UnholdObjects>(body))
        for (const ObjectId& id : held->objects) objects_.take_back(id, &daemon_, 1);
      return;
    case MessageType::kControlReply:
      if (auto reply = wire::decode<wire::ControlReply>(body)) {
        auto found = calls_.find(reply->call_id);
        if (found == calls_.end()) return;
        auto then = std::move(found->second);
        calls_.erase(found);
        then(*reply);
      }
      return;
    case MessageType::kControlEvent:
      if (auto event = wire::decode<wire::ControlEvent>(body)) {
        if (event->topic != static_cast<uint16_t>(wire::ControlTopic::kActor)) return;
        if (auto info = wire::decode<wire::ActorInfo>(event->body)) actor_event(*info);
      }
      return;
    case MessageType::kCreateActor:
      if (auto create = wire::decode<wire::CreateActor>(body)) {
        auto task = std::make_shared<IncomingTask>();
        task->record = Blob::copy(as_bytes(create->spec.arguments));
        task->create = std::move(*create);
        actor_incarnation_ = task->create->incarnation;
        hosts_actor_ = true;
        job_ = task->create->spec.job;
        auto lease = std::make_shared<wire::LeaseInfo>();
        lease->resources = task->create->spec.resources;
        lease->instances = task->create->instances;
        lease->runtime_env = task->create->spec.runtime_env;
        lease->scheduling = task->create->spec.scheduling;
        task->lease = std::move(lease);
        wire::RecordReader reader(task->record->bytes());
        uint64_t count = reader.get<uint64_t>();
        reader.align();
        if (!reader.ok() || !parse_arguments(*task, reader, static_cast<uint32_t>(count))) {
          wire::ActorCreated refused{task->create->spec.actor, task->create->incarnation, false, {}};
          send_daemon(MessageType::kActorCreated, refused);
          return;
        }
        run_queues_[""].push_back(std::move(task));
        run_ready_[""].notify_one();
      }
      return;
    case MessageType::kExit:
      if (!is_worker_) return;  // a driver's end is the program's: it hears the daemon hang up
      if (auto exit = wire::decode<wire::Exit>(body)) {
        if (exit->force) _exit(exit->reason.exit_code);
        asked_to_leave(*exit);
      }
      return;
    case MessageType::kHandedOver:
      if (auto answer = wire::decode<wire::HandedOver>(body)) handed_over(*answer);
      return;
    case MessageType::kStoreSpaceReply:
      if (auto reply = wire::decode<wire::StoreSpaceReply>(body)) {
        auto found = store_calls_.find(reply->call_id);
        if (found == store_calls_.end()) return;
        *found->second = {true, reply->ok, static_cast<ErrorCode>(reply->error_code), reply->message, {}};
        replies_.notify_all();
      }
      return;
    case MessageType::kObjectsRestored:
      if (auto reply = wire::decode<wire::ObjectsRestored>(body)) {
        auto found = store_calls_.find(reply->call_id);
        if (found == store_calls_.end()) return;
        *found->second = {true, reply->lost.empty(), ErrorCode::kNotFound, reply->message, reply->lost};
        replies_.notify_all();
      }
      return;
    case MessageType::kLogLines:
      if (auto lines = wire::decode<wire::LogLines>(body); lines && !logs_over_) {
        constexpr size_t kBatchesMax = 1024;
        if (logs_.size() < kBatchesMax)
          logs_.push_back(std::move(*lines));
        else
          logs_.back().dropped += lines->lines.size() + lines->dropped;
        logs_ready_.notify_one();
      }
      return;
    case MessageType::kLogsFlushed:
      logs_flushed_ = true;
      replies_.notify_all();
      return;
    default: return;  // a newer daemon's message; both ends compared versions, so this does not happen
  }
}

void Runtime::send(Peer* peer, uint16_t type, rpc::Urgency urgency,
                   std::initializer_list<std::span<const uint8_t>> parts) {
  if (peer->state == Peer::State::kDead) return;
  if (peer == &self_) {
    std::string body;
    for (std::span<const uint8_t> part : parts)
      body.append(reinterpret_cast<const char*>(part.data()), part.size());
    self_records_.push_back({type, urgency, std::move(body)});
    return;
  }
  if (peer->state == Peer::State::kOpen) {
    peer->link->send(type, parts);
    if (static_cast<uint32_t>(urgency) > static_cast<uint32_t>(peer->urgency)) peer->urgency = urgency;
    if (!peer->dirty) {
      peer->dirty = true;
      dirty_.push_back(peer);
    }
    return;
  }
  std::string body;
  for (std::span<const uint8_t> part : parts)
    body.append(reinterpret_cast<const char*>(part.data()), part.size());
  peer->waiting.push_back({type, urgency, std::move(body)});
  if (peer->state == Peer::State::kUnknown) {
    peer->state = Peer::State::kOpening;
    send_daemon(MessageType::kOpenLink, wire::OpenLink{peer->address});
  }
}

void Runtime::send_daemon_body(uint16_t type, const std::string& body) {
  send(&daemon_, type, rpc::Urgency::kUrgent, {as_bytes(body)});
}

void Runtime::flush() {
  leave_step();
  while (!self_records_.empty() || !heir_requests_.empty()) {
    send_heir_requests();
    if (self_records_.empty()) continue;
    Peer::Waiting record = std::move(self_records_.front());
    self_records_.pop_front();
    dispatch(&self_, record.type, as_bytes(record.body));
  }
  for (Peer* peer : dirty_) {
    peer->dirty = false;
    if (peer->link) peer->link->ring(peer->link->crowded() ? rpc::Urgency::kUrgent : peer->urgency);
    peer->urgency = rpc::Urgency::kLazy;
  }
  dirty_.clear();
}

Peer* Runtime::peer_of(const wire::Address& address) {
  if (address == self()) return nullptr;
  std::unique_ptr<Peer>& peer = peers_[address.worker];
  if (!peer) {
    peer = std::make_unique<Peer>();
    peer->address = address;
  }
  return peer.get();
}

void Runtime::link_opened(const wire::LinkOpened& opened) {
  if (opened.link >= rpc::kLinksMax || opened.peer_slot >= rpc::kSlotsMax || opened.side > 1) return;
  Peer* peer = peer_of(opened.peer);
  if (peer == nullptr || peer->state == Peer::State::kDead || peer->link) return;
  peer->link = std::make_unique<rpc::Link>(*segment_, opened.link, opened.side, opened.peer_slot);
  peer->pid = opened.peer_pid;
  peer->state = Peer::State::kOpen;
  links_[opened.link] = peer;
  std::vector<Peer::Waiting> waiting;
  waiting.swap(peer->waiting);
  for (Peer::Waiting& record : waiting) send(peer, record.type, record.urgency, {as_bytes(record.body)});
  // The peer may have written before we knew of the link: its mark was ours to see, not to use.
  rpc::ring(mailbox_->bell(), opened.link, rpc::Urgency::kUrgent, -1);
}

void Runtime::peer_died(const wire::Address& address, const wire::Death& death) {
  Peer* peer = peer_of(address);
  if (peer == nullptr || peer->state == Peer::State::kDead) return;
  if (peer->link) {
    // What it wrote before it died counts: results first.
    for (;;) {
      Result<size_t> handled = peer->link->receive(
          [&](uint16_t type, std::span<const uint8_t> body) { dispatch(peer, type, body); });
      if (!handled || *handled == 0) break;
    }
  }
  peer->state = Peer::State::kDead;
  peer->death = death;
  peer->waiting.clear();

  // Leases of it: what was begun has failed, the rest goes back to the queue.
  std::vector<Lease*> lost_leases;
  for (auto& [id, lease] : leases_)
    if (lease->worker == peer) lost_leases.push_back(lease.get());
  for (Lease* lease : lost_leases) lease->worker_exits = true;  // no task that is queued again goes there
  for (Lease* lease : lost_leases) {
    std::vector<TaskRecord*> tasks = lease->in_flight;
    for (TaskRecord* task : tasks) {
      bool begun = true;
      if (peer->link && task->claim != wire::kNoClaim) {
        uint32_t word = peer->link->own_claim(task->claim).load(std::memory_order_acquire);
        begun = word != rpc::claim_word(task->claim, rpc::Claim::kOffered);
      }
      remove_in_flight(task);
      attempt_failed(task, death, begun);
    }
    drop_lease(lease);
  }
  for (auto& [id, client] : actors_)
    if (client->peer == peer || (!client->in_flight.empty() && client->in_flight.front()->worker == peer))
      actor_lost(client.get(), death);
  // Tasks that are done but whose pins the dead worker still held.
  for (TaskRecord& task : tasks_) {
    if (task.holding && task.worker == peer) {
      task.holding = false;
      end_task(&task);
    }
  }
  // Tasks that it pushed here: nobody waits for them any more.
  for (auto& [key, task] : running_) {
    if (key.first != peer) continue;
    task->cancelled.store(true);
    task->stream_consumed.store(wire::kStreamAbandoned);
    cancels_due_.emplace_back(task, true);
  }
  credit_word_.fetch_add(1);
  rpc::futex_wake_all(credit_word_);
  for (auto found = untaken_results_.begin(); found != untaken_results_.end();) {
    if (found->first.first != peer) {
      ++found;
      continue;
    }
    std::vector<Entry*> held = std::move(found->second);
    found = untaken_results_.erase(found);
    for (Entry* entry : held) objects_.unpin(entry);
  }
  objects_.peer_died(peer);
  if (peer->link) {
    links_[peer->link->index()] = nullptr;
    peer->link.reset();
  }
}

// --- what the dead owned ---------------------------------------------------------------------

/// Claims and releases of one owner's objects that follow each other travel together.
void Runtime::send_heir_requests() {
  std::vector<HeirRequest> requests;
  requests.swap(heir_requests_);
  for (size_t i = 0; i < requests.size();) {
    const HeirRequest first = requests[i];
    std::vector<ObjectId> ids;
    for (; i < requests.size() && requests[i].owner == first.owner && requests[i].claim == first.claim; ++i)
      if (!requests[i].id.is_nil()) ids.push_back(requests[i].id);
    if (daemon_.state == Peer::State::kDead) {
      if (first.claim) objects_claimed({first.owner->address, {}, std::move(ids)});
    } else if (first.claim) {
      send_daemon(MessageType::kClaimObjects, wire::ClaimObjects{first.owner->address, std::move(ids)});
    } else {
      send_daemon(MessageType::kReleaseObjects, wire::ReleaseObjects{std::move(ids)});
    }
  }
}

void Runtime::objects_claimed(const wire::ObjectsClaimed& answer) {
  Peer* owner = peer_of(answer.owner);
  for (const wire::KeptObject& kept : answer.kept) {
    Entry* entry = objects_.find(kept.id);
    if (entry != nullptr && entry->owner == owner && !entry->ready() && objects_.last_answer(kept.id))
      take_kept(entry, kept);
    objects_.registered(kept.id);
  }
  for (const ObjectId& id : answer.lost) {
    Entry* entry = objects_.find(id);
    if (entry != nullptr && entry->owner == owner && owner != nullptr && objects_.last_answer(id)) {
      objects_.pin(entry);
      entry->grants_in = 0;
      if (!entry->ready()) resolve_inline(entry, owner_died_error(id, owner->death), true);
      objects_.unpin(entry);
    }
    objects_.registered(id);
  }
}

void Runtime::take_kept(Entry* entry, const wire::KeptObject& kept) {
  objects_.pin(entry);  // until what it contains is registered
  std::vector<Entry*> inner;
  for (const auto& [id, owner] : kept.contained)
    if (Entry* found = objects_.intern(id, peer_of(owner))) inner.push_back(found);
  objects_.contain(entry, inner);
  entry->size_bytes = kept.size_bytes;
  entry->is_error = kept.is_error;
  if (kept.stored) {
    entry->state.store(ObjectState::kStored, std::memory_order_release);
    resolved(entry);
  } else {
    resolve_inline(entry, Blob::copy(as_bytes(kept.value)), kept.is_error);
  }
  if (objects_.register_then(inner, entry->owner, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
    objects_.unpin(entry);
}

Clock::time_point Runtime::timers() {
  using std::chrono::milliseconds;
  constexpr int64_t kIdleLeaseNs = 1'000'000'000;
  constexpr int64_t kOverstayNs = 5'000'000;
  std::lock_guard lock(mutex_);
  Clock::time_point now = Clock::now();
  int64_t now_ns = now.time_since_epoch().count();
  Clock::time_point next = now + std::chrono::seconds(1);
  std::vector<Lease*> idle;
  for (auto& [id, lease] : leases_) {
    if (lease->in_flight.empty()) {
      if (now_ns - lease->idle_since_ns >= kIdleLeaseNs) idle.push_back(lease.get());
    } else if (lease->in_flight.size() > 1) {
      // The task at its head overstays: the others must not wait behind it.
      if (now_ns - lease->progress_ns >= kOverstayNs) take_back_unbegun(lease.get());
      next = std::min(next, now + milliseconds(5));
    }
  }
  for (Lease* lease : idle) return_lease(lease, false);
  std::vector<Shape*> hungry(hungry_.begin(), hungry_.end());
  for (Shape* shape : hungry) {
    pump(shape);
    if (!shape->queue.empty()) {
      update_demand(shape, true);
      if (pipelined_ != 0) next = std::min(next, now + milliseconds(5));
    }
  }
  flush();
  return next;
}

// --- control ---------------------------------------------------------------------------------

void Runtime::call_control(wire::ControlMethod method, std::string body,
                           std::function<void(const wire::ControlReply&)> then) {
  uint64_t id = next_call_++;
  if (daemon_.state == Peer::State::kDead) {
    then({id, false, static_cast<uint8_t>(ErrorCode::kUnavailable), "the node daemon is gone"});
    return;
  }
  calls_[id] = std::move(then);
  send_daemon(MessageType::kControlCall,
              wire::ControlCall{id, static_cast<uint16_t>(method), std::move(body)});
}

Result<std::string> Runtime::control_call(wire::ControlMethod method, std::string body,
                                          Clock::time_point until, const std::function<bool()>& interrupted) {
  struct State {
    WaitWord done;
    wire::ControlReply reply;
  };
  auto state = std::make_shared<State>();
  {
    std::lock_guard lock(mutex_);
    call_control(method, std::move(body), [state](const wire::ControlReply& reply) {
      state->reply = reply;
      state->done.set();
    });
    flush();
  }
  WaitOutcome outcome;
  do outcome = block_until(state->done, until);
  while (outcome == WaitOutcome::kInterrupted && !stopping_.load() && !(interrupted && interrupted()));
  if (outcome == WaitOutcome::kTimeout)
    return Error{ErrorCode::kTimeout, "the control service did not answer in time"};
  if (outcome == WaitOutcome::kInterrupted) return Error{ErrorCode::kCancelled, "interrupted"};
  if (!state->reply.ok) return Error{static_cast<ErrorCode>(state->reply.error_code), state->reply.body};
  return std::move(state->reply.body);
}

std::optional<wire::LogLines> Runtime::next_logs(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  auto ready = [&] { return !logs_.empty() || logs_over_ || stopping_.load(); };
  if (until == Clock::time_point::max())
    logs_ready_.wait(lock, ready);
  else
    logs_ready_.wait_until(lock, until, ready);
  if (logs_.empty()) {
    if (logs_over_ || stopping_.load()) return std::nullopt;
    return wire::LogLines{};
  }
  wire::LogLines lines = std::move(logs_.front());
  logs_.pop_front();
  return lines;
}

bool Runtime::flush_logs(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  logs_flushed_ = false;
  if (!stopping_.load() && daemon_.state != Peer::State::kDead) {
    send(&daemon_, static_cast<uint16_t>(MessageType::kFlushLogs), rpc::Urgency::kUrgent, {});
    flush();
    replies_.wait_until(lock, until, [&] { return logs_flushed_ || stopping_.load(); });
  }
  logs_over_ = true;
  logs_ready_.notify_all();
  return logs_flushed_ || stopping_.load();  // the end of the daemon is told otherwise
}

std::optional<uint64_t> Runtime::next_callback() {
  std::unique_lock lock(mutex_);
  callbacks_ready_.wait(lock, [&] { return !callbacks_.empty() || stopping_.load(); });
  if (callbacks_.empty()) return std::nullopt;
  uint64_t cookie = callbacks_.front();
  callbacks_.pop_front();
  return cookie;
}

// --- effects of ownership --------------------------------------------------------------------

void Runtime::register_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state == Peer::State::kDead) {
    heir_requests_.push_back({owner, true, id});
    return;
  }
  send_flat(owner, RecordType::kRegisterRef, rpc::Urgency::kUrgent, wire::RefMessage{id, count});
}
void Runtime::release_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state == Peer::State::kDead) {
    heir_requests_.push_back({owner, false, id});
    return;
  }
  send_flat(owner, RecordType::kReleaseRef, rpc::Urgency::kUrgent, wire::RefMessage{id, count});
}
void Runtime::pins_released(Peer* submitter, uint64_t token) {
  send_flat(submitter, RecordType::kPinsReleased, rpc::Urgency::kUrgent, wire::TokenMessage{token});
}
void Runtime::results_taken(Peer* worker, uint64_t token) {
  send_flat(worker, RecordType::kResultsTaken, rpc::Urgency::kUrgent, wire::TokenMessage{token});
}
void Runtime::erase_stored(const ObjectId& id) {
  if (store_->info(id).state == store::ObjectState::kSpilled)
    send_daemon(MessageType::kEraseObjects, wire::EraseObjects{{id}});
  store_->erase(id);
}
void Runtime::actor_out_of_scope(const ObjectId& handle) {
  wire::ActorRef ref{handle.task().actor()};
  call_control(wire::ControlMethod::kActorOutOfScope, wire::encode(ref), [](const wire::ControlReply&) {});
}
void Runtime::object_gone(Entry& entry) {
  if (entry.task == nullptr) return;
  for (Entry*& returned : entry.task->returns)
    if (returned == &entry) returned = nullptr;
}

}  // namespace skate::worker
