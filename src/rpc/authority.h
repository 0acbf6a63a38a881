// Authority: signs the certificates that the daemons of a cluster show each other over TCP.
//
// It is derived from the cluster key: whoever knows the key can issue a certificate to itself and check that
// of any other, so that nothing has to be handed out but the key, and nothing lies on a disk. Certificates
// are good from 1970 to 9999, for whatever time a machine believes it to be; a daemon makes a new one each
// time it starts. The fingerprint tells nothing about the key and may be shown to anyone.
#pragma once

#include <openssl/types.h>

#include <array>
#include <memory>

#include "rpc/key.h"

namespace skate::rpc {

struct OpenSslFree {
  void operator()(X509* certificate) const;
  void operator()(EVP_PKEY* key) const;
};
using Certificate = std::unique_ptr<X509, OpenSslFree>;
using PrivateKey = std::unique_ptr<EVP_PKEY, OpenSslFree>;

/// A private key and the certificate that belongs to it.
struct Identity {
  Certificate certificate;
  PrivateKey key;
};

/// Names an authority: the first half of the SHA-256 of its public key.
using Fingerprint = std::array<uint8_t, 16>;
Fingerprint fingerprint_of(X509* certificate);

class Authority {
 public:
  explicit Authority(const ClusterKey& key);

  /// The same in every process that derives it from the same key.
  X509* certificate() const { return identity_.certificate.get(); }
  const Fingerprint& fingerprint() const { return fingerprint_; }
  /// A new key with a certificate: not for signing others.
  Identity issue() const;

 private:
  Identity identity_;
  Fingerprint fingerprint_;
};

}  // namespace skate::rpc
