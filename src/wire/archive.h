// encode/decode of plain aggregates for the control plane: little-endian, by field order, no schema text.
//
// A message is a struct of arithmetic types, enums, bools, ids, std::string, std::vector, std::map,
// std::pair, std::optional and other such structs; its fields are found by Boost.PFR. Decoding treats its
// input as hostile: every length is checked against what is left, nesting is bounded by the types.
// Both ends of a connection compare versions before they exchange messages, so that the format needs no
// field tags. The per-call records of the data path are flat structs (records.h) and do not come here.
#pragma once

#include <boost/pfr/core.hpp>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace skate::wire {

namespace detail {

template <class T>
concept IdLike = requires { T::kSize; } && requires(T t) { t.bytes; };
template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsMap : std::false_type {};
template <class K, class V>
struct IsMap<std::map<K, V>> : std::true_type {};
template <class T>
struct IsPair : std::false_type {};
template <class A, class B>
struct IsPair<std::pair<A, B>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class T>
void put(std::string& out, const T& value) {
  if constexpr (IdLike<T>) {
    out.append(reinterpret_cast<const char*>(value.bytes.data()), T::kSize);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(T));
  } else if constexpr (std::is_same_v<T, std::string>) {
    put(out, static_cast<uint64_t>(value.size()));
    out.append(value);
  } else if constexpr (IsVector<T>::value || IsMap<T>::value) {
    put(out, static_cast<uint64_t>(value.size()));
    for (const auto& item : value) put(out, item);
  } else if constexpr (IsPair<T>::value) {
    put(out, value.first);
    put(out, value.second);
  } else if constexpr (IsOptional<T>::value) {
    put(out, value.has_value());
    if (value) put(out, *value);
  } else {
    boost::pfr::for_each_field(value, [&](const auto& field) { put(out, field); });
  }
}

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> input) : input_(input) {}
  bool at_end() const { return input_.empty(); }

  template <class T>
  bool get(T& value) {
    if constexpr (IdLike<T>) {
      return raw(value.bytes.data(), T::kSize);
    } else if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      if (!raw(&byte, 1) || byte > 1) return false;
      value = byte == 1;
      return true;
    } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      return raw(&value, sizeof(T));
    } else if constexpr (std::is_same_v<T, std::string>) {
      uint64_t size = 0;
      if (!get(size) || size > input_.size()) return false;
      value.assign(reinterpret_cast<const char*>(input_.data()), size);
      input_ = input_.subspan(size);
      return true;
    } else if constexpr (IsVector<T>::value) {
      uint64_t count = 0;
      if (!get(count) || count > input_.size()) return false;  // every element takes a byte or more
      value.clear();
      for (uint64_t i = 0; i < count; ++i) {
        typename T::value_type item{};
        if (!get(item)) return false;
        value.push_back(std::move(item));
      }
      return true;
    } else if constexpr (IsMap<T>::value) {
      uint64_t count = 0;
      if (!get(count) || count > input_.size()) return false;
      value.clear();
      for (uint64_t i = 0; i < count; ++i) {
        typename T::key_type key{};
        typename T::mapped_type mapped{};
        if (!get(key) || !get(mapped)) return false;
        value.emplace(std::move(key), std::move(mapped));
      }
      return true;
    } else if constexpr (IsPair<T>::value) {
      return get(value.first) && get(value.second);
    } else if constexpr (IsOptional<T>::value) {
      bool has = false;
      if (!get(has)) return false;
      value.reset();
      return !has || get(value.emplace());
    } else {
      bool ok = true;
      boost::pfr::for_each_field(value, [&](auto& field) { ok = ok && get(field); });
      return ok;
    }
  }

 private:
  bool raw(void* out, size_t size) {
    if (size > input_.size()) return false;
    std::memcpy(out, input_.data(), size);
    input_ = input_.subspan(size);
    return true;
  }
  std::span<const uint8_t> input_;
};

}  // namespace detail

template <class Message>
void encode_to(const Message& message, std::string& out) {
  detail::put(out, message);
}

template <class Message>
std::string encode(const Message& message) {
  std::string out;
  detail::put(out, message);
  return out;
}

/// The whole of `input` must be one Message; anything else is kCorrupt.
template <class Message>
Result<Message> decode(std::span<const uint8_t> input) {
  Message message{};
  detail::Reader reader(input);
  if (!reader.get(message) || !reader.at_end())
    return Error{ErrorCode::kCorrupt,
                 "a message of " + std::to_string(input.size()) + " bytes does not parse"};
  return message;
}

template <class Message>
Result<Message> decode(std::string_view input) {
  return decode<Message>(std::span(reinterpret_cast<const uint8_t*>(input.data()), input.size()));
}

}  // namespace skate::wire
