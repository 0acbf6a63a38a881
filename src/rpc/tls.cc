#include "rpc/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "rt/sleep.h"

namespace skate::rpc {

namespace {

constexpr size_t kRecordBytes = 16384;
constexpr size_t kRecordOverhead = 22;  // header, type, tag
constexpr size_t kWriteRecords = 8;
constexpr size_t kWriteBytes = kWriteRecords * kRecordBytes;
constexpr size_t kOutBytesMax = kWriteBytes + kWriteRecords * kRecordOverhead + 4096;
constexpr size_t kReadBytesMin = 4096;
constexpr size_t kReadBytesMax = 128 << 10;
constexpr size_t kTurnBytes = 256 << 10;
constexpr size_t kCertificatesBytesMax = 8192;
constexpr std::string_view kBindingLabel = "EXPORTER-skate-binding";

/// Takes the cluster with the expected fingerprint for the only authority there is.
int verify_as_guest(X509_STORE_CTX* store, void* expected) {
  STACK_OF(X509)* shown = X509_STORE_CTX_get0_untrusted(store);
  for (int i = 0; i < sk_X509_num(shown); ++i) {
    X509* authority = sk_X509_value(shown, i);
    if (fingerprint_of(authority) != *static_cast<const Fingerprint*>(expected)) continue;
    STACK_OF(X509)* trusted = sk_X509_new_null();
    SKATE_ASSERT(trusted != nullptr, "no memory for a list");
    SKATE_ASSERT(sk_X509_push(trusted, authority) == 1, "no memory for a list");
    X509_STORE_CTX_set0_trusted_stack(store, trusted);
    const int verified = X509_verify_cert(store);
    sk_X509_free(trusted);
    return verified;
  }
  X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_UNTRUSTED);
  return 0;
}

}  // namespace

/// The stream's buffers as OpenSSL sees them.
struct TlsBio {
  static TlsStream& stream(BIO* bio) { return *static_cast<TlsStream*>(BIO_get_data(bio)); }

  static int read(BIO* bio, char* out, int size) {
    TlsStream::Buffer& in = stream(bio).in_;
    BIO_clear_retry_flags(bio);
    if (in.size() == 0) {
      BIO_set_retry_read(bio);
      return -1;
    }
    const size_t taken = std::min(static_cast<size_t>(size), in.size());
    std::memcpy(out, in.data.get() + in.begin, taken);
    in.begin += taken;
    return static_cast<int>(taken);
  }

  /// Refuses what exceeds the limit: a peer that asks for new keys and never reads.
  static int write(BIO* bio, const char* bytes, int size) {
    TlsStream::Buffer& out = stream(bio).out_;
    BIO_clear_retry_flags(bio);
    const auto added = static_cast<size_t>(size);
    if (out.end + added > kOutBytesMax) return -1;
    out.reserve(out.end + added);
    std::memcpy(out.data.get() + out.end, bytes, added);
    out.end += added;
    return size;
  }

  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  static int create(BIO* bio) {
    BIO_set_init(bio, 1);
    return 1;
  }

  static const BIO_METHOD* method() {
    static const BIO_METHOD* const made = [] {
      BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "skate stream");
      SKATE_ASSERT(method != nullptr, "no memory for a table");
      BIO_meth_set_read(method, read);
      BIO_meth_set_write(method, write);
      BIO_meth_set_ctrl(method, control);
      BIO_meth_set_create(method, create);
      return method;
    }();
    return made;
  }
};

void TlsStream::Buffer::reserve(size_t bytes) {
  if (bytes <= capacity) return;
  bytes = std::max(bytes, 2 * capacity);
  auto larger = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  if (end > 0) std::memcpy(larger.get(), data.get(), end);
  data = std::move(larger);
  capacity = bytes;
}

TlsContext::TlsContext(TlsOptions options) : context_(SSL_CTX_new(TLS_method())), options_(options) {
  SKATE_ASSERT(context_ != nullptr, "no memory for a TLS context");
  SSL_CTX_set_options(context_, SSL_OP_NO_TICKET);
  SSL_CTX_clear_options(context_, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
  SSL_CTX_set_mode(context_, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_max_cert_list(context_, kCertificatesBytesMax);
  const bool set = SSL_CTX_set_min_proto_version(context_, TLS1_3_VERSION) == 1 &&
                   SSL_CTX_set_max_proto_version(context_, TLS1_3_VERSION) == 1 &&
                   SSL_CTX_set_ciphersuites(context_, "TLS_AES_128_GCM_SHA256") == 1 &&
                   SSL_CTX_set1_groups_list(context_, "X25519") == 1 &&
                   SSL_CTX_set1_sigalgs_list(context_, "ed25519") == 1 &&
                   SSL_CTX_set1_client_sigalgs_list(context_, "ed25519") == 1 &&
                   SSL_CTX_set_num_tickets(context_, 0) == 1;
  SKATE_ASSERT(set, "this OpenSSL has TLS 1.3 with AES-128-GCM, X25519 and Ed25519");
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

std::shared_ptr<TlsContext> TlsContext::of_member(const ClusterKey& key, TlsOptions options) {
  const Authority authority(key);
  const Identity identity = authority.issue();
  std::shared_ptr<TlsContext> made(new TlsContext(options));
  SSL_CTX* context = made->context_;
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // The authority's certificate goes along: a guest knows no more than its fingerprint.
  const bool set = SSL_CTX_use_certificate(context, identity.certificate.get()) == 1 &&
                   SSL_CTX_use_PrivateKey(context, identity.key.get()) == 1 &&
                   SSL_CTX_add1_chain_cert(context, authority.certificate()) == 1 &&
                   X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.certificate()) == 1;
  SKATE_ASSERT(set, "a certificate that was just made can be used");
  return made;
}

std::shared_ptr<TlsContext> TlsContext::of_guest(const Fingerprint& authority, TlsOptions options) {
  std::shared_ptr<TlsContext> made(new TlsContext(options));
  made->expected_ = authority;
  SSL_CTX_set_verify(made->context_, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(made->context_, verify_as_guest, &made->expected_);
  return made;
}

TlsStream::TlsStream(std::unique_ptr<rt::Stream> below, std::shared_ptr<TlsContext> context)
    : below_(std::move(below)),
      context_(std::move(context)),
      ssl_(SSL_new(context_->native())),
      read_bytes_(kReadBytesMin) {
  BIO* bio = BIO_new(TlsBio::method());
  SKATE_ASSERT(ssl_ != nullptr, "no memory for a TLS connection");
  SKATE_ASSERT(bio != nullptr, "no memory for a TLS connection");
  BIO_set_data(bio, this);
  SSL_set_bio(ssl_, bio, bio);
}

TlsStream::~TlsStream() { SSL_free(ssl_); }

rt::Task<TlsStream::Connected> TlsStream::connect(std::unique_ptr<rt::Stream> below,
                                                  std::shared_ptr<TlsContext> context) {
  std::unique_ptr<TlsStream> stream(new TlsStream(std::move(below), std::move(context)));
  SSL_set_connect_state(stream->ssl_);
  return meet(std::move(stream));
}

rt::Task<TlsStream::Connected> TlsStream::accept(std::unique_ptr<rt::Stream> below,
                                                 std::shared_ptr<TlsContext> context, TlsPeer peer) {
  std::unique_ptr<TlsStream> stream(new TlsStream(std::move(below), std::move(context)));
  SSL_set_accept_state(stream->ssl_);
  if (peer == TlsPeer::kGuest) SSL_set_verify(stream->ssl_, SSL_VERIFY_NONE, nullptr);
  return meet(std::move(stream));
}

rt::Task<TlsStream::Connected> TlsStream::meet(std::unique_ptr<TlsStream> stream) {
  Result<void> shaken = co_await stream->shake_hands();
  if (!shaken) co_return shaken.error();
  co_return std::move(stream);
}

rt::Task<Result<void>> TlsStream::shake_hands() {
  while (true) {
    ERR_clear_error();
    const int done = SSL_do_handshake(ssl_);
    const int why = done == 1 ? SSL_ERROR_NONE : SSL_get_error(ssl_, done);
    // Before anything else runs: OpenSSL keeps its reasons by thread.
    if (done != 1 && why != SSL_ERROR_WANT_READ) failure_ = failed(ErrorCode::kDenied, why);
    if (out_.size() > 0) {  // also what tells the peer why it is refused
      Result<void> sent = co_await flush();
      if (!sent && !failure_) co_return sent.error();
    }
    if (failure_) co_return *failure_;
    if (done == 1) co_return Result<void>();
    Result<void> filled = co_await fill();
    if (!filled) co_return filled.error();
  }
}

rt::Task<Result<size_t>> TlsStream::read(std::span<uint8_t> buffer) {
  while (true) {
    if (turn_bytes_ >= kTurnBytes) {
      turn_bytes_ = 0;
      co_await rt::next_turn();
    }
    if (closed_) co_return Error{ErrorCode::kUnavailable, "the connection is closed"};
    Result<size_t> got = decrypt(buffer);
    if (!got) co_return got.error();
    if (*got > 0 || ended_ || buffer.empty()) co_return *got;
    Result<void> filled = co_await fill();
    if (!filled) co_return filled.error();
  }
}

Result<size_t> TlsStream::decrypt(std::span<uint8_t> buffer) {
  size_t total = 0;
  while (!failure_ && !ended_ && total < buffer.size()) {
    ERR_clear_error();
    size_t got = 0;
    const int done = SSL_read_ex(ssl_, buffer.data() + total, buffer.size() - total, &got);
    total += got;
    if (done == 1) continue;
    const int why = SSL_get_error(ssl_, done);
    if (why == SSL_ERROR_WANT_READ) return total;
    if (why == SSL_ERROR_ZERO_RETURN) {
      ended_ = true;
    } else {
      failure_ = failed(ErrorCode::kCorrupt, why);
    }
  }
  if (total == 0 && failure_) return *failure_;  // what came before it is sound, and goes first
  return total;
}

rt::Task<Result<void>> TlsStream::fill() {
  SKATE_ASSERT(in_.size() == 0, "OpenSSL takes what there is before it asks for more");
  in_.begin = in_.end = 0;
  if (in_.capacity != read_bytes_) in_ = Buffer{};
  in_.reserve(read_bytes_);
  Result<size_t> got = co_await below_->read(std::span(in_.data.get(), in_.capacity));
  if (closed_) co_return Error{ErrorCode::kUnavailable, "the connection is closed"};
  if (!got) co_return got.error();
  if (*got == 0) co_return Error{ErrorCode::kUnavailable, "the peer closed the connection"};
  in_.end = *got;
  turn_bytes_ += *got;
  // Bulk is read in large pieces; a connection that waits holds little.
  if (*got == in_.capacity) read_bytes_ = std::min(2 * read_bytes_, kReadBytesMax);
  if (*got < in_.capacity / 8) read_bytes_ = std::max(read_bytes_ / 2, kReadBytesMin);
  co_return Result<void>();
}

rt::Task<Result<void>> TlsStream::write(std::span<const uint8_t> bytes) {
  if (sending_.size() > 0)
    co_return Error{ErrorCode::kUnavailable, "an earlier write was cancelled: the connection is of no use"};
  const bool small = bytes.size() < kRecordBytes;
  while (!bytes.empty()) {
    if (turn_bytes_ >= kTurnBytes) {
      turn_bytes_ = 0;
      co_await rt::next_turn();
    }
    if (closed_) co_return Error{ErrorCode::kUnavailable, "the connection is closed"};
    const std::span<const uint8_t> part = bytes.first(std::min(bytes.size(), kWriteBytes));
    Result<void> encrypted = encrypt(part);
    if (!encrypted) co_return encrypted.error();
    Result<void> sent = co_await flush();
    if (!sent) co_return sent.error();
    turn_bytes_ += part.size();
    bytes = bytes.subspan(part.size());
  }
  // Bulk leaves a large buffer behind for more of it; what is small does without.
  if (small && out_.size() == 0 && out_.capacity > 2 * kRecordBytes) out_ = Buffer{};
  co_return Result<void>();
}

Result<void> TlsStream::encrypt(std::span<const uint8_t> bytes) {
  if (failure_) return *failure_;
  ERR_clear_error();
  if (key_bytes_ >= context_->options().bytes_per_key) {
    key_bytes_ = 0;
    const int done = SSL_key_update(ssl_, SSL_KEY_UPDATE_NOT_REQUESTED);  // goes out before what follows
    if (done != 1) return *(failure_ = failed(ErrorCode::kCorrupt, SSL_get_error(ssl_, done)));
  }
  key_bytes_ += bytes.size();
  out_.reserve(out_.end + bytes.size() + (bytes.size() / kRecordBytes + 1) * kRecordOverhead);
  size_t written = 0;
  const int done = SSL_write_ex(ssl_, bytes.data(), bytes.size(), &written);
  // There is always room below; a refusal means that the peer has broken the protocol.
  if (done != 1) return *(failure_ = failed(ErrorCode::kCorrupt, SSL_get_error(ssl_, done)));
  SKATE_ASSERT(written == bytes.size(), "without partial writes all is written");
  return {};
}

rt::Task<Result<void>> TlsStream::flush() {
  std::swap(out_, sending_);  // reading may add to out_ meanwhile
  Result<void> sent = co_await below_->write(sending_.bytes());
  sending_.begin = sending_.end = 0;
  if (out_.size() == 0) std::swap(out_, sending_);  // one buffer, warm in the cache, is used again
  co_return sent;
}

void TlsStream::close() {
  if (std::exchange(closed_, true)) return;
  below_->close();
}

Digest TlsStream::binding() const {
  Digest binding;
  const int done = SSL_export_keying_material(ssl_, binding.data(), binding.size(), kBindingLabel.data(),
                                              kBindingLabel.size(), nullptr, 0, 0);
  SKATE_ASSERT(done == 1, "a connection that stands has a binding");
  return binding;
}

Error TlsStream::failed(ErrorCode code, int ssl_error) const {
  const long verified = SSL_get_verify_result(ssl_);
  const char* reason = ERR_reason_error_string(ERR_peek_error());
  std::string text = "TLS with " + below_->peer() + ": ";
  if (verified != X509_V_OK) {
    text += std::string("its certificate is not of this cluster: ") + X509_verify_cert_error_string(verified);
  } else if (reason != nullptr) {
    text += reason;
  } else {
    text += "it breaks the protocol (" + std::to_string(ssl_error) + ")";
  }
  ERR_clear_error();
  return Error{code, std::move(text)};
}

}  // namespace skate::rpc
