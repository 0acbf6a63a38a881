#include "rpc/key.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/ids.h"
#include "base/unique_fd.h"

namespace skate::rpc {

ClusterKey ClusterKey::random() {
  std::string bytes(32, '\0');
  secure_random_bytes(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size());
  return ClusterKey(to_hex(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

Result<ClusterKey> ClusterKey::from_bytes(std::string bytes) {
  while (!bytes.empty() && (bytes.back() == '\n' || bytes.back() == '\r')) bytes.pop_back();
  if (bytes.size() < kBytesMin || bytes.size() > kBytesMax)
    return Error{ErrorCode::kInvalid, "a cluster key has " + std::to_string(kBytesMin) + " to " +
                                          std::to_string(kBytesMax) + " bytes, not " +
                                          std::to_string(bytes.size())};
  return ClusterKey(std::move(bytes));
}

Result<ClusterKey> ClusterKey::read_file(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return errno_error("cannot open the key file " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return errno_error("cannot inspect the key file " + path);
  if ((info.st_mode & 077) != 0)
    return Error{ErrorCode::kDenied, "the key file " + path + " is open to other users: chmod 600 it"};
  std::string bytes(kBytesMax + 2, '\0');
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t got = ::read(fd.get(), bytes.data() + size, bytes.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_error("cannot read the key file " + path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  bytes.resize(size);
  return from_bytes(std::move(bytes));
}

Result<void> ClusterKey::write_file(const std::string& path) const {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd && errno == EEXIST) return Error{ErrorCode::kExists, path + " exists"};
  if (!fd) return errno_error("cannot create the key file " + path);
  size_t done = 0;
  while (done < bytes_.size()) {
    const ssize_t sent = ::write(fd.get(), bytes_.data() + done, bytes_.size() - done);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno_error("cannot write the key file " + path);
    done += static_cast<size_t>(sent);
  }
  return {};
}

Digest ClusterKey::sign(std::initializer_list<std::span<const uint8_t>> parts) const {
  std::string message;
  for (const auto part : parts) message.append(reinterpret_cast<const char*>(part.data()), part.size());
  Digest digest;
  unsigned size = 0;
  const unsigned char* done =
      HMAC(EVP_sha256(), bytes_.data(), static_cast<int>(bytes_.size()),
           reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest.data(), &size);
  SKATE_ASSERT(done != nullptr && size == digest.size(), "HMAC-SHA256 is always there");
  return digest;
}

bool equal_in_constant_time(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace skate::rpc
