// A stranger's bytes against the server's handshake: it refuses and reads no more than its fixed sizes.
#include <algorithm>
#include <cstring>

#include "rpc/join.h"
#include "rt/sim_loop.h"
#include "rt/task_group.h"

namespace {

using namespace skate;

class Stranger final : public rt::Stream {
 public:
  explicit Stranger(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  rt::Task<Result<size_t>> read(std::span<uint8_t> buffer) override {
    const size_t size = std::min(buffer.size(), bytes_.size());
    std::memcpy(buffer.data(), bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    taken_ += size;
    co_return size;
  }
  rt::Task<Result<void>> write(std::span<const uint8_t>) override { co_return Result<void>(); }
  void close() override {}
  std::string peer() const override { return "stranger"; }
  size_t taken() const { return taken_; }

 private:
  std::span<const uint8_t> bytes_;
  size_t taken_ = 0;
};

rt::Task<void> meet(Stranger* stranger, bool* let_in) {
  Result<rpc::ClusterKey> key = rpc::ClusterKey::from_bytes("a key that the fuzzer never signs with");
  rpc::Judge judge = [key = *key](const rpc::Greeting& opening) {
    return opening.follows == rpc::Follows::kJoin ? rpc::judge_claim(key, opening.claim, 1'700'000'000)
                                                  : rpc::Verdict{.key = key};
  };
  std::string release = "1.0";
  Result<rpc::Handshake> known = co_await rpc::handshake_as_server(stranger, release, std::move(judge));
  *let_in = known.ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Stranger stranger(std::span(data, size));
  rt::SimLoop loop(1);
  bool let_in = false;
  {
    rt::TaskGroup group(loop);
    group.spawn(meet(&stranger, &let_in));
    loop.run();
    SKATE_ASSERT(group.size() == 0, "the handshake ends when the stranger does");
  }
  SKATE_ASSERT(!let_in, "a stranger is let in");
  SKATE_ASSERT(stranger.taken() <= rpc::Greeting::kBytes + sizeof(rpc::Digest),
               "a stranger's bytes are bounded");
  return 0;
}
