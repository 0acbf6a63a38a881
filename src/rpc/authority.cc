#include "rpc/authority.h"

#include <openssl/asn1.h>
#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/ids.h"

namespace skate::rpc {
namespace {

// No more than the label is ever signed under it, and no proof of a handshake begins with it.
constexpr std::string_view kAuthorityLabel = "skate authority";
constexpr const char* kFirstDay = "19700101000000Z";
constexpr const char* kLastDay = "99991231235959Z";
constexpr size_t kSerialBytes = 16;

struct Extension {
  int nid;
  const char* value;
};

PrivateKey derive_private_key(const ClusterKey& key) {
  const std::span label(reinterpret_cast<const uint8_t*>(kAuthorityLabel.data()), kAuthorityLabel.size());
  Digest seed = key.sign({label});
  PrivateKey derived(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size()));
  OPENSSL_cleanse(seed.data(), seed.size());
  SKATE_ASSERT(derived != nullptr, "any 32 bytes are an Ed25519 key");
  return derived;
}

Fingerprint fingerprint_of_key(const X509_PUBKEY* key) {
  uint8_t* der = nullptr;
  const int size = i2d_X509_PUBKEY(key, &der);
  SKATE_ASSERT(size > 0, "a public key that was parsed can be encoded");
  Digest digest;
  const int done = EVP_Digest(der, static_cast<size_t>(size), digest.data(), nullptr, EVP_sha256(), nullptr);
  OPENSSL_free(der);
  SKATE_ASSERT(done == 1, "SHA-256 is always there");
  Fingerprint fingerprint;
  std::copy_n(digest.begin(), fingerprint.size(), fingerprint.begin());
  return fingerprint;
}

void set_serial(X509* certificate, std::span<const uint8_t> bytes) {
  BIGNUM* number = BN_bin2bn(bytes.data(), static_cast<int>(bytes.size()), nullptr);
  const bool done =
      number != nullptr && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != nullptr;
  BN_free(number);
  SKATE_ASSERT(done, "a serial number can be set");
}

void set_name(X509* certificate, const std::string& name) {
  const bool done = X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                                               reinterpret_cast<const unsigned char*>(name.data()),
                                               static_cast<int>(name.size()), -1, 0) == 1;
  SKATE_ASSERT(done, "a name can be set");
}

/// Without an `issuer` it is its own.
Certificate make_certificate(EVP_PKEY* subject, const std::string& name, std::span<const uint8_t> serial,
                             std::initializer_list<Extension> extensions, X509* issuer, EVP_PKEY* signer) {
  Certificate certificate(X509_new());
  X509* made = certificate.get();
  SKATE_ASSERT(made != nullptr, "no memory for a certificate");
  if (issuer == nullptr) issuer = made;
  set_serial(made, serial);
  set_name(made, name);
  const bool filled = X509_set_version(made, X509_VERSION_3) == 1 && X509_set_pubkey(made, subject) == 1 &&
                      X509_set_issuer_name(made, X509_get_subject_name(issuer)) == 1 &&
                      ASN1_TIME_set_string_X509(X509_getm_notBefore(made), kFirstDay) == 1 &&
                      ASN1_TIME_set_string_X509(X509_getm_notAfter(made), kLastDay) == 1;
  SKATE_ASSERT(filled, "a certificate can be filled in");
  for (const Extension& wanted : extensions) {
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, made, nullptr, nullptr, 0);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, wanted.nid, wanted.value);
    const bool added = extension != nullptr && X509_add_ext(made, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    SKATE_ASSERT(added, "an extension can be added");
  }
  SKATE_ASSERT(X509_sign(made, signer, nullptr) > 0, "Ed25519 signs anything");
  return certificate;
}

Identity make_authority(const ClusterKey& key) {
  Identity identity;
  identity.key = derive_private_key(key);
  // Named by its fingerprint, so that a certificate of another cluster is told from a forged one.
  X509_PUBKEY* encoded = nullptr;
  SKATE_ASSERT(X509_PUBKEY_set(&encoded, identity.key.get()) == 1, "a public key can be encoded");
  const Fingerprint fingerprint = fingerprint_of_key(encoded);
  X509_PUBKEY_free(encoded);
  const uint8_t serial[] = {1};
  identity.certificate = make_certificate(
      identity.key.get(), "skate cluster " + to_hex(fingerprint.data(), fingerprint.size()), serial,
      {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"}, {NID_key_usage, "critical,keyCertSign"}},
      nullptr, identity.key.get());
  return identity;
}

}  // namespace

void OpenSslFree::operator()(X509* certificate) const { X509_free(certificate); }
void OpenSslFree::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }

Fingerprint fingerprint_of(X509* certificate) {
  return fingerprint_of_key(X509_get_X509_PUBKEY(certificate));
}

Authority::Authority(const ClusterKey& key)
    : identity_(make_authority(key)), fingerprint_(fingerprint_of(identity_.certificate.get())) {}

Identity Authority::issue() const {
  Identity identity;
  identity.key.reset(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  SKATE_ASSERT(identity.key != nullptr, "an Ed25519 key can be made");
  std::array<uint8_t, kSerialBytes> serial;
  secure_random_bytes(serial.data(), serial.size());
  serial[0] = static_cast<uint8_t>((serial[0] & 0x7F) | 0x40);  // positive, and always of one length
  identity.certificate = make_certificate(identity.key.get(), "skate node", serial,
                                          {{NID_basic_constraints, "critical,CA:FALSE"},
                                           {NID_key_usage, "critical,digitalSignature"},
                                           {NID_ext_key_usage, "serverAuth,clientAuth"}},
                                          identity_.certificate.get(), identity_.key.get());
  return identity;
}

}  // namespace skate::rpc
