#include "rt/sim_network.h"

#include <algorithm>
#include <cstring>

#include "rt/sleep.h"
#include "rt/sync.h"

namespace skate::rt {

namespace {
constexpr size_t kPipeBytesMax = 1 << 20;
constexpr size_t kBacklogMax = 64;
}  // namespace

/// One direction of a connection. Shared by its two streams.
struct SimNetwork::Pipe {
  std::deque<std::pair<TimePoint, std::vector<uint8_t>>> chunks;
  size_t bytes = 0;
  TimePoint last_arrival{};
  bool ended = false;   // no more is written
  bool broken = false;  // what is inside is lost
  std::shared_ptr<WaitList> changed = std::make_shared<WaitList>();
  void break_now() {
    broken = ended = true;
    changed->wake_all();
  }
};

struct SimNetwork::Pending {
  std::deque<std::unique_ptr<Stream>> streams;
  WaitList arrived;
};

class SimStream final : public Stream {
 public:
  using Pipe = SimNetwork::Pipe;
  SimStream(SimNetwork& network, std::shared_ptr<Pipe> in, std::shared_ptr<Pipe> out)
      : network_(network), in_(std::move(in)), out_(std::move(out)) {}
  ~SimStream() override { close(); }

  Task<Result<size_t>> read(std::span<uint8_t> buffer) override {
    while (true) {
      if (in_->broken || closed_) co_return Error{ErrorCode::kUnavailable, "the connection is broken"};
      if (!in_->chunks.empty()) {
        auto& [arrival, bytes] = in_->chunks.front();
        if (arrival > network_.loop_.now()) {
          co_await sleep_until(arrival);
          continue;
        }
        const size_t size = std::min(buffer.size(), bytes.size());
        std::memcpy(buffer.data(), bytes.data(), size);
        in_->bytes -= size;
        if (size == bytes.size()) {
          in_->chunks.pop_front();
        } else {
          bytes.erase(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
        }
        in_->changed->wake_all();
        co_return size;
      }
      if (in_->ended) co_return size_t{0};
      co_await in_->changed->wait();
    }
  }
  Task<Result<void>> write(std::span<const uint8_t> bytes) override {
    if (bytes.empty()) co_return Result<void>();  // an empty chunk would read as the end
    if (network_.loop_.random().chance(network_.options_.break_probability)) {
      in_->break_now();
      out_->break_now();
    }
    while (true) {
      if (out_->broken || out_->ended) co_return Error{ErrorCode::kUnavailable, "the connection is broken"};
      if (out_->bytes == 0 || out_->bytes + bytes.size() <= kPipeBytesMax) break;
      co_await out_->changed->wait();
    }
    out_->last_arrival = std::max(out_->last_arrival, network_.loop_.now() + network_.random_delay());
    out_->chunks.emplace_back(out_->last_arrival, std::vector<uint8_t>(bytes.begin(), bytes.end()));
    out_->bytes += bytes.size();
    out_->changed->wake_all();
    co_return Result<void>();
  }
  void close() override {
    if (std::exchange(closed_, true)) return;
    out_->ended = true;
    out_->changed->wake_all();
    in_->break_now();  // the peer's writes fail from now on
  }
  std::string peer() const override { return "simulated"; }

 private:
  SimNetwork& network_;
  std::shared_ptr<Pipe> in_;
  std::shared_ptr<Pipe> out_;
  bool closed_ = false;
};

class SimListener final : public Listener {
 public:
  SimListener(SimNetwork& network, std::string address, std::unique_ptr<SimNetwork::Pending> pending)
      : network_(network), address_(std::move(address)), pending_(std::move(pending)) {}
  ~SimListener() override { network_.listeners_.erase(address_); }
  Task<Result<std::unique_ptr<Stream>>> accept() override {
    while (pending_->streams.empty()) co_await pending_->arrived.wait();
    std::unique_ptr<Stream> stream = std::move(pending_->streams.front());
    pending_->streams.pop_front();
    co_return stream;
  }
  std::string address() const override { return address_; }

 private:
  SimNetwork& network_;
  std::string address_;
  std::unique_ptr<SimNetwork::Pending> pending_;
};

SimNetwork::~SimNetwork() { SKATE_ASSERT(listeners_.empty(), "a listener outlives its network"); }

Duration SimNetwork::random_delay() {
  const auto range = static_cast<uint64_t>((options_.delay_max - options_.delay_min).count());
  return options_.delay_min + Duration(loop_.random().below(range + 1));
}

std::shared_ptr<SimNetwork::Pipe> SimNetwork::new_pipe(const std::string& address) {
  auto pipe = std::make_shared<Pipe>();
  std::erase_if(pipes_, [](const auto& entry) { return entry.second.expired(); });
  pipes_.emplace(address, pipe);
  return pipe;
}

Task<Result<std::unique_ptr<Stream>>> SimNetwork::connect(std::string address) {
  co_await sleep_for(random_delay());
  const auto found = listeners_.find(address);
  if (found == listeners_.end() || refused_.contains(address) || found->second->streams.size() >= kBacklogMax)
    co_return Error{ErrorCode::kUnavailable, "cannot connect to " + address};
  std::shared_ptr<Pipe> there = new_pipe(address);
  std::shared_ptr<Pipe> back = new_pipe(address);
  found->second->streams.push_back(std::make_unique<SimStream>(*this, there, back));
  found->second->arrived.wake_all();
  co_return std::unique_ptr<Stream>(std::make_unique<SimStream>(*this, back, there));
}

Result<std::unique_ptr<Listener>> SimNetwork::listen(std::string address) {
  if (listeners_.contains(address)) return Error{ErrorCode::kExists, "another process listens on " + address};
  auto pending = std::make_unique<Pending>();
  listeners_[address] = pending.get();
  return std::unique_ptr<Listener>(
      std::make_unique<SimListener>(*this, std::move(address), std::move(pending)));
}

void SimNetwork::cut(const std::string& address, bool refuse) {
  if (refuse) refused_.insert(address);
  auto [begin, end] = pipes_.equal_range(address);
  for (auto entry = begin; entry != end; ++entry) {
    if (std::shared_ptr<Pipe> pipe = entry->second.lock()) pipe->break_now();
  }
}

}  // namespace skate::rt
