// For tests and fuzzers: a stream whose incoming bytes are cut, flipped, split or held back.
#pragma once

#include <algorithm>
#include <memory>

#include "rt/stream.h"
#include "rt/sync.h"

namespace skate::rpc {

struct Faults {
  static constexpr size_t kNowhere = ~size_t{0};
  size_t cut_at = kNowhere;    ///< the stream ends before this byte
  size_t stall_at = kNowhere;  ///< this byte never comes
  size_t flip_at = kNowhere;
  uint8_t flip = 1;              ///< these bits of it
  size_t read_max = kNowhere;    ///< bytes to a read
  size_t* read_bytes = nullptr;  ///< counts
};

class FaultyStream final : public rt::Stream {
 public:
  FaultyStream(std::unique_ptr<rt::Stream> below, Faults faults)
      : below_(std::move(below)), faults_(faults) {}

  rt::Task<Result<size_t>> read(std::span<uint8_t> buffer) override {
    if (taken_ >= faults_.stall_at) co_await never_.wait();
    if (taken_ >= faults_.cut_at) {
      below_->close();
      co_return size_t{0};
    }
    const size_t most =
        std::min({buffer.size(), faults_.read_max, faults_.cut_at - taken_, faults_.stall_at - taken_});
    Result<size_t> got = co_await below_->read(buffer.first(most));
    if (!got) co_return got.error();
    if (faults_.flip_at >= taken_ && faults_.flip_at - taken_ < *got)
      buffer[faults_.flip_at - taken_] ^= faults_.flip;
    taken_ += *got;
    if (faults_.read_bytes != nullptr) *faults_.read_bytes = taken_;
    co_return *got;
  }
  rt::Task<Result<void>> write(std::span<const uint8_t> bytes) override { return below_->write(bytes); }
  void close() override { below_->close(); }
  std::string peer() const override { return below_->peer(); }

 private:
  std::unique_ptr<rt::Stream> below_;
  Faults faults_;
  size_t taken_ = 0;
  rt::Event never_;
};

}  // namespace skate::rpc
