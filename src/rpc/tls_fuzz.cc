// TLS between two ends of which one is the fuzzer, or whose bytes it changes: nobody is let in by mistake,
// what is read is what was written, and both come to an end.
#include <cstring>
#include <vector>

#include "base/assert.h"
#include "rpc/admission.h"
#include "rpc/tls_testing.h"
#include "rt/sim_network.h"
#include "rt/task_group.h"

namespace {

using namespace skate;
using StreamPtr = std::unique_ptr<rt::Stream>;

class Stranger final : public rt::Stream {
 public:
  explicit Stranger(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  rt::Task<Result<size_t>> read(std::span<uint8_t> buffer) override {
    const size_t size = std::min(buffer.size(), bytes_.size());
    std::memcpy(buffer.data(), bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    co_return size;
  }
  rt::Task<Result<void>> write(std::span<const uint8_t>) override { co_return Result<void>(); }
  void close() override {}
  std::string peer() const override { return "stranger"; }

 private:
  std::span<const uint8_t> bytes_;
};

std::shared_ptr<rpc::TlsContext> context() {
  static const auto made = rpc::TlsContext::of_member(*rpc::ClusterKey::from_bytes("the key of the fuzzer"));
  return made;
}

rt::Task<void> meet_stranger(std::span<const uint8_t> bytes, bool connect) {
  StreamPtr stranger = std::make_unique<Stranger>(bytes);
  rt::Task<rpc::TlsStream::Connected> meeting = connect
                                                    ? rpc::TlsStream::connect(std::move(stranger), context())
                                                    : rpc::TlsStream::accept(std::move(stranger), context());
  rpc::TlsStream::Connected met = co_await std::move(meeting);
  SKATE_ASSERT(!met.ok(), "a stranger is let in");
}

constexpr size_t kTextBytes = 40'000;  // three records

rt::Task<void> send(StreamPtr stream, rpc::Faults faults, StreamPtr* keep_open) {
  StreamPtr faulty = std::make_unique<rpc::FaultyStream>(std::move(stream), faults);
  rpc::TlsStream::Connected tls = co_await rpc::TlsStream::connect(std::move(faulty), context());
  if (!tls) co_return;
  const std::vector<uint8_t> text(kTextBytes, 't');
  Result<void> sent = co_await (*tls)->write(text);
  if (sent) *keep_open = std::move(*tls);
}

rt::Task<void> receive(rt::Listener* listener, rpc::Faults faults) {
  Result<StreamPtr> stream = co_await listener->accept();
  if (!stream) co_return;
  StreamPtr faulty = std::make_unique<rpc::FaultyStream>(std::move(*stream), faults);
  rpc::TlsStream::Connected tls = co_await rpc::TlsStream::accept(std::move(faulty), context());
  if (!tls) co_return;
  std::vector<uint8_t> buffer(10'000);
  for (size_t total = 0; total < kTextBytes;) {
    Result<size_t> got = co_await (*tls)->read(buffer);
    if (!got || *got == 0) co_return;
    total += *got;
    SKATE_ASSERT(total <= kTextBytes, "more is read than was written");
    for (size_t i = 0; i < *got; ++i)
      SKATE_ASSERT(buffer[i] == 't', "something else is read than was written");
  }
}

rt::Task<void> dial(rt::Network* network, rpc::Faults faults, StreamPtr* keep_open) {
  Result<StreamPtr> stream = co_await network->connect("fuzz");
  if (stream) co_await send(std::move(*stream), faults, keep_open);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 8) return 0;
  const std::span rest(data + 1, size - 1);
  rt::SimLoop loop(1);
  if (data[0] % 4 < 2) {
    rt::TaskGroup group(loop);
    group.spawn(meet_stranger(rest, data[0] % 4 == 0));
    loop.run();
    SKATE_ASSERT(group.size() == 0, "a meeting ends when the stranger does");
    return 0;
  }
  rpc::Faults faults;
  uint16_t at = 0;
  std::memcpy(&at, rest.data(), sizeof(at));
  (rest[2] % 2 == 0 ? faults.flip_at : faults.cut_at) = at;
  faults.flip = rest[3];
  faults.read_max = size_t{1} + rest[4] * 16;
  rt::SimNetwork network(loop, {});
  std::unique_ptr<rt::Listener> listener = std::move(*network.listen("fuzz"));
  StreamPtr keep_open;
  rt::TaskGroup group(loop);
  const bool at_client = data[0] % 4 == 2;
  group.spawn(receive(listener.get(), at_client ? rpc::Faults{} : faults));
  group.spawn(dial(&network, at_client ? faults : rpc::Faults{}, &keep_open));
  loop.run();
  return 0;
}
