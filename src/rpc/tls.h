// TLS 1.3 as a Stream around a Stream, between daemons that trust one authority.
//
// One protocol version, one cipher suite (AES-128-GCM), one group, one signature: both ends are Skate of one
// release, so there is nothing to agree on. No tickets and no resumption: connections are few and long.
// Records are written as large as they may be, many to a write of the stream below.
#pragma once

#include <openssl/types.h>

#include <memory>
#include <optional>

#include "rpc/authority.h"
#include "rt/stream.h"

namespace skate::rpc {

struct TlsOptions {
  /// The sender takes a new key after so much: far below what AES-GCM allows (2^38 bytes).
  uint64_t bytes_per_key = uint64_t{1} << 36;
};

/// What a process shows of itself and whom it trusts. Shared by the servers and clients of a daemon and by
/// the streams that they make; it does not change.
class TlsContext {
 public:
  /// Of who knows the key: shows a certificate, and meets only peers that have one of the same authority.
  static std::shared_ptr<TlsContext> of_member(const ClusterKey& key, TlsOptions options = {});
  /// Of who has no key yet: shows nothing, and meets the cluster with this authority. Connects only.
  static std::shared_ptr<TlsContext> of_guest(const Fingerprint& authority, TlsOptions options = {});
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  SSL_CTX* native() const { return context_; }
  const TlsOptions& options() const { return options_; }

 private:
  explicit TlsContext(TlsOptions options);
  SSL_CTX* context_;
  TlsOptions options_;
  Fingerprint expected_{};  ///< of a guest
};

enum class TlsPeer : uint8_t { kMember, kGuest };

/// The peer of a stream that was returned has been checked by connect(); after accept() of a guest it is
/// unknown. An end of the stream below without TLS's own end is no end but a loss (kUnavailable): anybody can
/// cut a connection. close() is such a cut. What was changed on the way is kCorrupt, and nothing after it is
/// read. A write that was cancelled leaves a stream that can only be closed. Lives on its loop's thread.
class TlsStream final : public rt::Stream {
 public:
  using Connected = Result<std::unique_ptr<TlsStream>>;
  /// kDenied: the two do not trust each other, or it is no TLS. kUnavailable: gone.
  static rt::Task<Connected> connect(std::unique_ptr<rt::Stream> below, std::shared_ptr<TlsContext> context);
  static rt::Task<Connected> accept(std::unique_ptr<rt::Stream> below, std::shared_ptr<TlsContext> context,
                                    TlsPeer peer = TlsPeer::kMember);
  ~TlsStream() override;

  rt::Task<Result<size_t>> read(std::span<uint8_t> buffer) override;
  rt::Task<Result<void>> write(std::span<const uint8_t> bytes) override;
  void close() override;
  std::string peer() const override { return below_->peer(); }

  /// The same at both ends, and for no other connection: whoever sits between has two of them.
  Digest binding() const;

 private:
  friend struct TlsBio;
  /// Bytes that grow without being cleared first.
  struct Buffer {
    std::unique_ptr<uint8_t[]> data;
    size_t capacity = 0, begin = 0, end = 0;
    size_t size() const { return end - begin; }
    std::span<uint8_t> bytes() { return {data.get() + begin, size()}; }
    void reserve(size_t bytes);
  };

  TlsStream(std::unique_ptr<rt::Stream> below, std::shared_ptr<TlsContext> context);
  static rt::Task<Connected> meet(std::unique_ptr<TlsStream> stream);
  rt::Task<Result<void>> shake_hands();
  /// What can be read without waiting; 0: nothing yet, or the end (ended_).
  Result<size_t> decrypt(std::span<uint8_t> buffer);
  Result<void> encrypt(std::span<const uint8_t> bytes);
  /// Waits for bytes from below.
  rt::Task<Result<void>> fill();
  rt::Task<Result<void>> flush();
  Error failed(ErrorCode code, int ssl_error) const;

  std::unique_ptr<rt::Stream> below_;
  std::shared_ptr<TlsContext> context_;
  SSL* ssl_;
  Buffer in_;       ///< received, not decrypted
  Buffer out_;      ///< encrypted, not sent
  Buffer sending_;  ///< being sent; left by a write that was cancelled
  size_t read_bytes_;
  size_t turn_bytes_ = 0;  ///< moved since the loop had its turn
  uint64_t key_bytes_ = 0;
  bool ended_ = false;
  bool closed_ = false;
  std::optional<Error> failure_;
};

}  // namespace skate::rpc
