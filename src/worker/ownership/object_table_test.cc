// The rules at the head of object_table.h one by one, then all of them at once: processes that pass refs on
// in arguments, results and objects, drop them and die, with messages that overtake each other between pairs.
#include "worker/ownership/object_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "worker/peer.h"

namespace skate::worker {
namespace {

ObjectId numbered(uint32_t process, uint32_t number) {
  ObjectId id;
  id.bytes.fill(0);
  std::memcpy(id.data(), &process, sizeof process);
  std::memcpy(id.data() + sizeof process, &number, sizeof number);
  return id;
}

struct Sent {
  std::string what;
  Peer* peer;
  ObjectId id;
  uint64_t number;
  bool operator==(const Sent&) const = default;
};

class Recorder : public OwnershipEffects {
 public:
  void register_ref(Peer* owner, const ObjectId& id, uint32_t n) override { add({"register", owner, id, n}); }
  void release_ref(Peer* owner, const ObjectId& id, uint32_t n) override { add({"release", owner, id, n}); }
  void pins_released(Peer* peer, uint64_t token) override { add({"pins_released", peer, {}, token}); }
  void results_taken(Peer* peer, uint64_t token) override { add({"results_taken", peer, {}, token}); }
  void erase_stored(const ObjectId& id) override { add({"erase", nullptr, id, 0}); }
  void actor_out_of_scope(const ObjectId& id) override { add({"actor_ends", nullptr, id, 0}); }
  void object_gone(Entry& entry) override { gone.push_back(entry.id); }
  std::vector<Sent> take() { return std::exchange(sent, {}); }

  std::vector<Sent> sent;
  std::vector<ObjectId> gone;

 private:
  void add(Sent one) { sent.push_back(std::move(one)); }
};

class ObjectTableTest : public testing::Test {
 protected:
  Entry* own(uint32_t number) { return table.create(numbered(0, number)); }
  Entry* borrowed(uint32_t number) { return table.intern(numbered(1, number), &owner); }
  static Obligation taken(Peer* peer, uint64_t token) {
    return {Obligation::Kind::kResultsTaken, peer, token, {}};
  }

  Recorder effects;
  Peer owner, other, third;
  ObjectTable table{effects};
};

TEST_F(ObjectTableTest, AnOwnedObjectGoesWithItsLastHold) {
  Entry* entry = own(1);
  const ObjectId id = entry->id;
  entry->in_local_store = true;
  entry->handles = 1;
  table.pin(entry);
  table.grant(entry, &other, 1);
  table.drop_handle(entry);
  EXPECT_NE(table.find(id), nullptr);
  table.unpin(entry);
  EXPECT_NE(table.find(id), nullptr);
  EXPECT_TRUE(effects.sent.empty());
  EXPECT_TRUE(table.take_back(id, &other, 1));
  EXPECT_EQ(table.find(id), nullptr);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"erase", nullptr, id, 0}}));
  EXPECT_EQ(effects.gone, std::vector<ObjectId>{id});
}

TEST_F(ObjectTableTest, TheLastHandleOfAnActorEndsIt) {
  Entry* entry = own(1);
  const ObjectId id = entry->id;
  entry->keeps_actor = true;
  entry->handles = 1;
  table.drop_handle(entry);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"actor_ends", nullptr, id, 0}}));
}

TEST_F(ObjectTableTest, ABorrowerGivesBackAllItsGrantsAtOnce) {
  Entry* entry = borrowed(1);
  const ObjectId id = entry->id;
  entry->handles = 1;
  table.received_grant(entry, 2);
  table.received_grant(entry, 1);
  table.drop_handle(entry);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"release", &owner, id, 3}}));
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, WhoWasNeverGrantedGivesNothingBack) {
  Entry* entry = borrowed(1);
  table.pin(entry);
  table.unpin(entry);
  EXPECT_TRUE(effects.sent.empty());
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, MoreThanWasGivenIsNotTakenBack) {
  Entry* entry = own(1);
  table.grant(entry, &other, 2);
  table.grant(entry, &third, 1);
  EXPECT_FALSE(table.take_back(entry->id, &other, 3));
  EXPECT_FALSE(table.take_back(numbered(0, 9), &other, 1));
  EXPECT_FALSE(table.take_back(entry->id, &owner, 1));
  EXPECT_EQ(table.granted_to(entry, &other), 2u);
  EXPECT_EQ(entry->grants_out, 3u);
  EXPECT_TRUE(table.take_back(entry->id, &other, 2));
  EXPECT_EQ(table.granted_to(entry, &other), 0u);
  EXPECT_TRUE(table.take_back(entry->id, &third, 1));
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, OwnRefsThatAreGoneAreNotMadeAgain) {
  EXPECT_EQ(table.intern(numbered(0, 5), nullptr), nullptr);
  Entry* entry = borrowed(1);
  EXPECT_EQ(borrowed(1), entry);
}

TEST_F(ObjectTableTest, AnObligationWaitsForAllRegistrations) {
  Entry* first = borrowed(1);
  Entry* second = borrowed(2);
  EXPECT_FALSE(table.register_then({first, second}, &other, taken(&other, 7)));
  EXPECT_EQ(effects.take(),
            (std::vector<Sent>{{"register", &owner, first->id, 1}, {"register", &owner, second->id, 1}}));
  table.registered(second->id);
  EXPECT_TRUE(effects.sent.empty());
  table.registered(first->id);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"results_taken", &other, {}, 7}}));
}

TEST_F(ObjectTableTest, NothingToRegisterIsMetAtOnce) {
  Entry* mine = own(1);
  Entry* known = borrowed(1);
  table.received_grant(known, 1);
  EXPECT_TRUE(table.register_then({mine, known}, &other, taken(&other, 7)));
  EXPECT_TRUE(effects.sent.empty());
}

TEST_F(ObjectTableTest, MessagesToTheOwnerNeedNoAcknowledgement) {
  Entry* entry = borrowed(1);
  EXPECT_TRUE(table.register_then({entry}, &owner, taken(&owner, 7)));
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, entry->id, 1}}));
  table.registered(entry->id);
  EXPECT_TRUE(effects.sent.empty());
}

TEST_F(ObjectTableTest, ASecondObligationWaitsForTheRegistrationUnderWay) {
  Entry* entry = borrowed(1);
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 1)));
  EXPECT_FALSE(table.register_then({entry}, &third, {Obligation::Kind::kPinsReleased, &third, 2, {}}));
  EXPECT_EQ(effects.take().size(), 1u) << "registered once";
  table.registered(entry->id);
  EXPECT_EQ(effects.take(),
            (std::vector<Sent>{{"results_taken", &other, {}, 1}, {"pins_released", &third, {}, 2}}));
  table.registered(entry->id);
  EXPECT_TRUE(effects.sent.empty());
}

// Registered, dropped, and registered again before the first acknowledgement: that one says nothing about
// the second registration, which its owner may not have seen.
TEST_F(ObjectTableTest, AnAcknowledgementMeetsItsOwnRegistration) {
  Entry* entry = borrowed(1);
  const ObjectId id = entry->id;
  table.pin(entry);
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 1)));
  table.unpin(entry);
  entry = borrowed(1);
  table.pin(entry);
  EXPECT_FALSE(table.register_then({entry}, &third, taken(&third, 2)));
  effects.take();
  table.registered(id);
  EXPECT_TRUE(effects.sent.empty()) << "the owner may not know of it yet";
  table.registered(id);
  EXPECT_EQ(effects.take(),
            (std::vector<Sent>{{"results_taken", &other, {}, 1}, {"results_taken", &third, {}, 2}}));
}

TEST_F(ObjectTableTest, AnOrderedRegistrationsAcknowledgementIsNotTakenForAnother) {
  Entry* entry = borrowed(1);
  const ObjectId id = entry->id;
  table.pin(entry);
  EXPECT_TRUE(table.register_then({entry}, &owner, taken(&owner, 1)));
  table.unpin(entry);
  entry = borrowed(1);
  table.pin(entry);
  EXPECT_FALSE(table.register_then({entry}, &third, taken(&third, 2)));
  effects.take();
  table.registered(id);
  EXPECT_TRUE(effects.sent.empty());
  table.registered(id);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"results_taken", &third, {}, 2}}));
}

TEST_F(ObjectTableTest, AnObjectKeepsWhatItContains) {
  Entry* outer = own(1);
  Entry* inner = own(2);
  Entry* foreign = borrowed(3);
  const ObjectId foreign_id = foreign->id;
  table.received_grant(foreign, 1);
  table.contain(outer, {inner, foreign, foreign});
  table.settle(inner);
  EXPECT_EQ(table.size(), 3u);
  table.settle(outer);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"release", &owner, foreign_id, 1}}));
}

TEST_F(ObjectTableTest, ALongChainOfObjectsGoesWithoutRecursion) {
  constexpr uint32_t kLength = 200'000;
  Entry* inner = own(0);
  for (uint32_t i = 1; i < kLength; ++i) {
    Entry* outer = own(i);
    table.contain(outer, {inner});
    inner = outer;
  }
  table.settle(inner);
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, TheOuterObjectStaysUntilTheInnerIsRegistered) {
  Entry* outer = own(1);
  const ObjectId id = outer->id;
  Entry* inner = borrowed(2);
  table.pin(outer);
  EXPECT_FALSE(table.register_then({inner}, nullptr, {Obligation::Kind::kUnpin, nullptr, 0, id}));
  EXPECT_NE(table.find(id), nullptr);
  table.registered(inner->id);
  EXPECT_EQ(table.find(id), nullptr);
}

TEST_F(ObjectTableTest, DeathOfABorrowerVoidsItsGrants) {
  Entry* entry = own(1);
  Entry* shared = own(2);
  table.grant(entry, &other, 3);
  table.grant(shared, &other, 1);
  table.grant(shared, &third, 1);
  table.peer_died(&other);
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(shared->grants_out, 1u);
  EXPECT_FALSE(table.take_back(shared->id, &other, 1));
}

TEST_F(ObjectTableTest, WhatADeadProcessOwnedIsRegisteredAnew) {
  Entry* entry = borrowed(1);
  entry->handles = 1;
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)));
  effects.take();
  table.peer_died(&owner);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, entry->id, 1}})) << "for the heir";
  EXPECT_TRUE(table.last_answer(entry->id));
  table.registered(entry->id);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"results_taken", &other, {}, 7}}));
  ObjectId id = entry->id;
  table.drop_handle(entry);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"release", &owner, id, 1}}));
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, ManyGrantsOfADeadOwnerAreOneForItsHeir) {
  Entry* entry = borrowed(1);
  entry->handles = 1;
  table.received_grant(entry, 5);
  table.peer_died(&owner);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, entry->id, 1}}));
  EXPECT_EQ(entry->grants_in, 1u);
}

TEST_F(ObjectTableTest, AValueThatIsHereNeedsNoOwner) {
  Entry* entry = borrowed(1);
  entry->handles = 1;
  table.received_grant(entry, 1);
  entry->state = ObjectState::kInline;
  table.peer_died(&owner);
  EXPECT_TRUE(table.register_then({entry}, &other, taken(&other, 7)));
  table.claim(entry);
  table.drop_handle(entry);
  EXPECT_TRUE(effects.sent.empty());
}

TEST_F(ObjectTableTest, AValueWithRefsInsideIsKeptByTheHeir) {
  Entry* outer = borrowed(1);
  Entry* inner = table.intern(numbered(2, 1), &third);
  const ObjectId id = outer->id;
  outer->handles = 1;
  table.received_grant(inner, 1);
  table.contain(outer, {inner});
  outer->state = ObjectState::kInline;
  table.peer_died(&owner);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, id, 1}}))
      << "the owner of what is inside may not have heard of this process";
}

TEST_F(ObjectTableTest, WhoWaitsForAValueThatIsHereMovesOnWhenItsOwnerDies) {
  Entry* entry = borrowed(1);
  entry->handles = 1;
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)));
  entry->state = ObjectState::kInline;
  effects.take();
  table.peer_died(&owner);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"results_taken", &other, {}, 7}})) << "no answer will come";
}

TEST_F(ObjectTableTest, RefsOfADeadOwnerAreRegisteredWithItsHeir) {
  table.peer_died(&owner);
  Entry* entry = borrowed(1);
  entry->handles = 1;
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)));
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, entry->id, 1}}));
}

TEST_F(ObjectTableTest, WhoGaveUpAndTookAgainHasTwoAnswersToCome) {
  table.peer_died(&owner);
  Entry* entry = borrowed(1);
  ObjectId id = entry->id;
  table.pin(entry);
  table.claim(entry);
  table.unpin(entry);
  table.claim(borrowed(1));
  EXPECT_FALSE(table.last_answer(id));
  table.registered(id);
  EXPECT_TRUE(table.last_answer(id));
}

TEST_F(ObjectTableTest, AnOwnersDeathKeepsTheOuterObjectUntilTheHeirHasTheInner) {
  Entry* outer = borrowed(1);
  Entry* inner = borrowed(2);
  inner->handles = 1;
  table.pin(outer);
  EXPECT_FALSE(table.register_then({inner}, &other, {Obligation::Kind::kUnpin, nullptr, 0, outer->id}));
  table.peer_died(&owner);
  EXPECT_EQ(table.size(), 2u);
  table.registered(outer->id);
  table.registered(inner->id);
  EXPECT_EQ(table.size(), 1u);
}

TEST_F(ObjectTableTest, WhatOthersHoldAndWhatItContainsIsGivenOnce) {
  Entry* outer = own(1);
  Entry* inner = own(2);
  Entry* alone = own(3);
  Entry* foreign = borrowed(4);
  for (Entry* entry : {outer, inner, alone}) entry->state = ObjectState::kInline;
  alone->handles = 1;
  table.received_grant(foreign, 1);
  table.contain(outer, {inner, foreign});
  EXPECT_FALSE(table.granted_any());
  table.grant(outer, &other, 1);
  EXPECT_TRUE(table.granted_any());
  EXPECT_THAT(table.give(~uint64_t{0}, 10), testing::UnorderedElementsAre(outer, inner));
  EXPECT_TRUE(table.give(~uint64_t{0}, 10).empty());
  EXPECT_TRUE(table.take_back(outer->id, &other, 1));
  EXPECT_FALSE(table.granted_any());
  EXPECT_TRUE(effects.take().empty()) << "what was given is the heir's to free";
  EXPECT_EQ(table.size(), 4u);
  table.take_home();
  EXPECT_EQ(effects.take().size(), 1u) << "the foreign ref was let go";
  EXPECT_EQ(table.size(), 1u);
}

TEST_F(ObjectTableTest, WhatIsGivenInPartsIsGivenWhole) {
  constexpr uint32_t kCount = 20;
  Entry* inner = nullptr;
  for (uint32_t i = 0; i < kCount; ++i) {
    Entry* outer = own(i);
    outer->state = ObjectState::kStored;
    outer->in_local_store = true;
    if (inner != nullptr) table.contain(outer, {inner});
    inner = outer;
  }
  table.grant(inner, &other, 1);
  std::set<Entry*> given;
  for (int part = 0; part < 7; ++part)
    for (Entry* entry : table.give(~uint64_t{0}, 3)) EXPECT_TRUE(given.insert(entry).second);
  EXPECT_EQ(given.size(), kCount);
  EXPECT_TRUE(table.give(~uint64_t{0}, 3).empty());
  table.peer_died(&other);
  EXPECT_TRUE(effects.take().empty());
  table.take_home();
  EXPECT_EQ(effects.take().size(), kCount) << "each is erased once";
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, AGivenObjectServesUntilTheEnd) {
  Entry* entry = own(1);
  entry->state = ObjectState::kInline;
  table.grant(entry, &other, 1);
  EXPECT_EQ(table.give(1, 1).size(), 1u);
  table.grant(entry, &third, 1);
  EXPECT_TRUE(table.take_back(entry->id, &other, 1));
  table.take_home();
  EXPECT_EQ(table.granted_to(entry, &third), 1u) << "who came meanwhile holds it";
  EXPECT_TRUE(table.take_back(entry->id, &third, 1));
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(ObjectTableTest, NothingIsGivenWhileItsOwnHoldsAreNotKnownOrActorsHangOnIt) {
  Entry* entry = borrowed(1);
  EXPECT_TRUE(table.may_give());
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)));
  EXPECT_FALSE(table.may_give()) << "its owner may not have heard of it";
  table.registered(entry->id);
  EXPECT_TRUE(table.may_give());
  Entry* actor = own(2);
  actor->keeps_actor = true;
  EXPECT_FALSE(table.may_give());
  table.settle(actor);
  EXPECT_TRUE(table.may_give());
}

// --- all of it at once -----------------------------------------------------------------------

struct Ref {
  ObjectId id;
  uint32_t owner;
};

struct Message {
  enum class Kind {
    kRegister,
    kRegistered,
    kRelease,
    kPinsReleased,
    kResultsTaken,
    kPush,
    kDone,
    kGet,
    kValue,
    kDied,
    kHeirHasNone,
  };
  Kind kind{};
  ObjectId id = {};
  uint32_t count = 0;
  uint64_t token = 0;
  bool holds = false;
  bool gone = false;
  std::vector<Ref> refs = {};  // inside arguments, inside the result, inside the object
};

class Cluster;

/// A process as far as it deals with refs, after the ways of Runtime.
class Process : public OwnershipEffects {
 public:
  Process(Cluster& cluster, uint32_t self, uint32_t processes)
      : cluster_(cluster), self_(self), peers_(processes) {}

  // What the program does.
  void put();
  void submit(uint32_t worker);
  void end_some_task();
  void read_some();
  void drop_some();
  void handle(uint32_t from, const Message& message);
  bool drop_everything();  ///< false: there was nothing
  std::string leftovers() const;

  ObjectTable& table() { return table_; }
  bool alive = true;

 private:
  struct Task {  // submitted
    uint32_t worker;
    ObjectId result;
    std::vector<Entry*> pinned;
    bool holding = false;
  };
  struct Incoming {
    uint32_t from;
    uint64_t token;
    ObjectId result;
    std::vector<Entry*> locals;
    std::vector<Entry*> borrowed;
  };

  Peer* peer(uint32_t index) { return index == self_ ? nullptr : &peers_[index]; }
  uint32_t index(const Peer* peer) const { return static_cast<uint32_t>(peer - peers_.data()); }
  Ref ref_of(const Entry* entry) {
    return {entry->id, entry->owner == nullptr ? self_ : index(entry->owner)};
  }
  void send(Peer* to, Message message);
  std::vector<Entry*> pick_held(size_t most);
  Entry* create();
  void hold(Entry* entry) {
    entry->handles.fetch_add(1);
    held_.push_back(entry);
  }
  Entry* adopt(const Ref& ref);
  void take_result(Entry* entry, const Message& message, uint32_t from, std::vector<Entry*>& foreign);
  void answer(Peer* to, Entry* entry);
  void resolve(Entry* entry);
  void end_task(uint64_t token);
  void finish(Incoming task);
  void died(uint32_t who);

  void register_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void release_ref(Peer* owner, const ObjectId& id, uint32_t count) override {
    send(owner, {.kind = Message::Kind::kRelease, .id = id, .count = count});
  }
  void pins_released(Peer* to, uint64_t token) override {
    send(to, {.kind = Message::Kind::kPinsReleased, .token = token});
  }
  void results_taken(Peer* to, uint64_t token) override {
    send(to, {.kind = Message::Kind::kResultsTaken, .token = token});
  }
  void erase_stored(const ObjectId&) override {}
  void actor_out_of_scope(const ObjectId&) override {}
  void object_gone(Entry&) override {}

  Cluster& cluster_;
  const uint32_t self_;
  std::vector<Peer> peers_;
  ObjectTable table_{*this};
  std::vector<Entry*> held_;  // one handle each
  uint32_t next_object_ = 0;
  uint64_t next_token_ = 0;
  std::map<uint64_t, Task> tasks_;
  std::vector<Incoming> running_;
  std::map<std::pair<uint32_t, uint64_t>, std::vector<Entry*>> untaken_;
};

class Cluster {
 public:
  Cluster(uint32_t seed, uint32_t processes, bool deaths) : random(seed), deaths_(deaths) {
    for (uint32_t i = 0; i < processes; ++i)
      processes_.push_back(std::make_unique<Process>(*this, i, processes));
    channels_.resize(processes, std::vector<std::deque<Message>>(processes));
  }

  /// Empty, or what went wrong.
  std::string run(uint32_t steps) {
    for (uint32_t i = 0; i < steps && failure.empty(); ++i) {
      step();
      check();
    }
    for (bool busy = true; busy && failure.empty();) {
      busy = false;
      while (deliver_one()) check();
      for (auto& process : processes_)
        if (process->alive) busy |= process->drop_everything();
      check();
    }
    for (uint32_t i = 0; i < processes_.size() && failure.empty(); ++i)
      if (processes_[i]->alive && !processes_[i]->leftovers().empty())
        failure = "process " + std::to_string(i) + " keeps " + processes_[i]->leftovers();
    return failure;
  }

  void send(uint32_t from, uint32_t to, Message message) {
    if (processes_[from]->alive && processes_[to]->alive) channels_[from][to].push_back(std::move(message));
  }
  uint32_t below(size_t n) { return static_cast<uint32_t>(random() % n); }
  /// Deaths of these processes may cost the object: who dies with the only registered hold takes it along.
  void touch(const ObjectId& id, uint32_t process) { touched[id].insert(process); }
  void touch_inside(const ObjectId& inner, const ObjectId& outer) {
    touched[inner].insert(touched[outer].begin(), touched[outer].end());
  }

  std::mt19937 random;
  std::map<ObjectId, std::set<uint32_t>> touched;
  std::map<ObjectId, size_t> born;
  std::string failure;

 private:
  void step() {
    const uint32_t who = below(processes_.size());
    Process& process = *processes_[who];
    if (deaths_ && below(400) == 0 && process.alive && living() > 2) return kill(who);
    const uint32_t action = below(20);
    if (action >= 10) {
      deliver_one();
    } else if (process.alive) {
      if (action < 1)
        process.put();
      else if (action < 3)
        process.submit((who + 1 + below(processes_.size() - 1)) % processes_.size());
      else if (action < 5)
        process.end_some_task();
      else if (action < 7)
        process.read_some();
      else
        process.drop_some();
    }
  }
  size_t living() const {
    return std::count_if(processes_.begin(), processes_.end(), [](const auto& p) { return p->alive; });
  }
  void kill(uint32_t who) {
    // What it wrote before is read first, as Runtime::peer_died does.
    for (uint32_t to = 0; to < processes_.size(); ++to) {
      channels_[to][who].clear();
      if (to != who) send(who, to, {.kind = Message::Kind::kDied});
    }
    processes_[who]->alive = false;
  }
  bool deliver_one() {
    std::vector<std::pair<uint32_t, uint32_t>> full;
    for (uint32_t from = 0; from < channels_.size(); ++from)
      for (uint32_t to = 0; to < channels_.size(); ++to)
        if (!channels_[from][to].empty()) full.emplace_back(from, to);
    if (full.empty()) return false;
    auto [from, to] = full[below(full.size())];
    Message message = std::move(channels_[from][to].front());
    channels_[from][to].pop_front();
    if (processes_[to]->alive) processes_[to]->handle(from, message);
    return true;
  }
  /// What a living process holds is in the table of its living owner.
  void check() {
    for (uint32_t holder = 0; holder < processes_.size() && failure.empty(); ++holder) {
      if (!processes_[holder]->alive) continue;
      processes_[holder]->table().for_each([&](const Entry& entry) {
        touch(entry.id, holder);
        if (entry.owner == nullptr || (entry.handles.load() == 0 && entry.pins == 0)) return;
        uint32_t owner = 0;
        std::memcpy(&owner, entry.id.data(), sizeof owner);
        if (!processes_[owner]->alive || processes_[owner]->table().find(entry.id) != nullptr) return;
        for (uint32_t process : touched[entry.id])
          if (!processes_[process]->alive) return;
        failure =
            "process " + std::to_string(holder) + " holds " + entry.id.hex() + ", which its owner freed";
      });
    }
  }

  const bool deaths_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::vector<std::deque<Message>>> channels_;  // [from][to]
};

void Process::send(Peer* to, Message message) {
  if (to->state != Peer::State::kDead) cluster_.send(self_, index(to), std::move(message));
}

void Process::register_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state == Peer::State::kDead)
    cluster_.send(self_, self_, {.kind = Message::Kind::kHeirHasNone, .id = id});
  else
    send(owner, {.kind = Message::Kind::kRegister, .id = id, .count = count});
}

std::vector<Entry*> Process::pick_held(size_t most) {
  std::vector<Entry*> picked;
  for (size_t i = cluster_.below(most + 1); i > 0 && !held_.empty(); --i)
    picked.push_back(held_[cluster_.below(held_.size())]);
  return picked;
}

Entry* Process::create() {
  ObjectId id = numbered(self_, next_object_++);
  cluster_.born.emplace(id, cluster_.born.size());
  return table_.create(id);
}

void Process::put() {
  std::vector<Entry*> inner = pick_held(3);
  Entry* entry = create();
  hold(entry);
  for (Entry* one : inner) cluster_.touch_inside(one->id, entry->id);
  table_.contain(entry, inner);
  entry->state = ObjectState::kInline;
}

void Process::submit(uint32_t worker) {
  if (peers_[worker].state == Peer::State::kDead) return;
  std::vector<Entry*> arguments = pick_held(3);
  Entry* result = create();
  Task task{worker, result->id, std::move(arguments)};
  Message push{.kind = Message::Kind::kPush, .id = task.result, .token = next_token_};
  for (Entry* entry : task.pinned) {
    table_.pin(entry);
    push.refs.push_back(ref_of(entry));
  }
  hold(result);
  send(peer(worker), std::move(push));
  tasks_.emplace(next_token_++, std::move(task));
}

Entry* Process::adopt(const Ref& ref) {
  Entry* entry = table_.intern(ref.id, peer(ref.owner));
  if (entry == nullptr) {  // ours, and freed
    entry = table_.create(ref.id);
    entry->state = ObjectState::kInline;
    if (cluster_.touched[ref.id].empty()) cluster_.failure = "an unknown object came";
  }
  entry->handles.fetch_add(1);
  return entry;
}

void Process::read_some() {
  if (held_.empty()) return;
  Entry* outer = held_[cluster_.below(held_.size())];
  if (!outer->ready()) {
    if (outer->owner == nullptr || outer->asked) return;
    outer->asked = true;
    if (outer->owner->state == Peer::State::kDead) return table_.claim(outer);
    return send(outer->owner, {.kind = Message::Kind::kGet, .id = outer->id});
  }
  if (!outer->contained) return;
  std::vector<Entry*> unknown;
  for (Entry* inner : *outer->contained) {
    cluster_.touch_inside(inner->id, outer->id);
    Entry* entry = adopt(ref_of(inner));
    held_.push_back(entry);
    if (entry->owner != nullptr && entry->grants_in == 0) unknown.push_back(entry);
  }
  if (unknown.empty()) return;
  table_.pin(outer);
  if (table_.register_then(unknown, outer->owner, {Obligation::Kind::kUnpin, nullptr, 0, outer->id}))
    table_.unpin(outer);
}

void Process::drop_some() {
  if (held_.empty()) return;
  std::swap(held_[cluster_.below(held_.size())], held_.back());
  Entry* entry = held_.back();
  held_.pop_back();
  table_.drop_handle(entry);
}

void Process::end_some_task() {
  if (running_.empty()) return;
  std::swap(running_[cluster_.below(running_.size())], running_.back());
  Incoming task = std::move(running_.back());
  running_.pop_back();
  finish(std::move(task));
}

void Process::finish(Incoming task) {
  // The result holds something of the arguments, of what the process kept, or new.
  std::vector<Entry*> contained = pick_held(2);
  for (Entry* entry : task.locals)
    if (cluster_.below(3) == 0) contained.push_back(entry);
  // An object that contains itself, by whatever way, is never freed: counting does not see cycles.
  std::erase_if(contained,
                [&](Entry* entry) { return cluster_.born[entry->id] >= cluster_.born[task.result]; });
  for (Entry* entry : contained) table_.pin(entry);
  for (Entry* entry : task.locals) {
    if (cluster_.below(3) == 0)
      held_.push_back(entry);  // an actor keeps it
    else
      table_.drop_handle(entry);
  }
  std::vector<Entry*> kept;
  for (Entry* entry : task.borrowed) {
    if (entry->handles.load() == 0 && entry->pins == 1)
      table_.unpin(entry);
    else
      kept.push_back(entry);
  }
  Peer* from = peer(task.from);
  Message done{.kind = Message::Kind::kDone, .token = task.token};
  done.holds = !kept.empty() &&
               !table_.register_then(kept, from, {Obligation::Kind::kPinsReleased, from, task.token, {}});
  for (Entry* entry : kept) table_.unpin(entry);
  for (Entry* entry : contained) done.refs.push_back(ref_of(entry));
  for (Entry* entry : contained) {
    if (from->state == Peer::State::kDead) {
      table_.unpin(entry);
    } else if (entry->owner == nullptr) {
      table_.grant(entry, from, 1);
      table_.unpin(entry);
    } else if (entry->owner != from) {
      untaken_[{task.from, task.token}].push_back(entry);
    }
  }
  send(from, done);
  if (from->state != Peer::State::kDead)
    for (Entry* entry : contained)
      if (entry->owner == from) table_.unpin(entry);
}

void Process::take_result(Entry* entry, const Message& message, uint32_t from, std::vector<Entry*>& foreign) {
  std::vector<Entry*> inner;
  for (const Ref& ref : message.refs) {
    Entry* found = table_.intern(ref.id, peer(ref.owner));
    if (found == nullptr) continue;
    if (entry != nullptr) cluster_.touch_inside(ref.id, entry->id);
    table_.pin(found);
    if (ref.owner == from) table_.received_grant(found, 1);
    inner.push_back(found);
    if (ref.owner != self_ && ref.owner != from) foreign.push_back(found);
  }
  if (entry != nullptr)
    table_.contain(entry, inner);
  else
    foreign.clear();
  for (Entry* found : inner) table_.unpin(found);
  if (entry != nullptr) resolve(entry);
}

void Process::resolve(Entry* entry) {
  entry->state = ObjectState::kInline;
  if (!entry->remote_waiters) return;
  auto waiters = std::move(entry->remote_waiters);
  for (Peer* waiter : *waiters) answer(waiter, entry);
}

void Process::answer(Peer* to, Entry* entry) {
  if (to->state == Peer::State::kDead) return;
  Message value{.kind = Message::Kind::kValue, .id = entry->id};
  if (entry->contained)
    for (Entry* inner : *entry->contained) {
      value.refs.push_back(ref_of(inner));
      if (inner->owner == nullptr) table_.grant(inner, to, 1);
    }
  send(to, value);
}

void Process::end_task(uint64_t token) {
  auto found = tasks_.find(token);
  std::vector<Entry*> pinned = std::move(found->second.pinned);
  tasks_.erase(found);
  for (Entry* entry : pinned) table_.unpin(entry);
}

void Process::handle(uint32_t from, const Message& message) {
  Peer* sender = peer(from);
  switch (message.kind) {
    case Message::Kind::kRegister: {
      Entry* entry = table_.find(message.id);
      if (entry != nullptr && entry->owner == nullptr) table_.grant(entry, sender, message.count);
      return send(sender, {.kind = Message::Kind::kRegistered, .id = message.id});
    }
    case Message::Kind::kRegistered: return table_.registered(message.id);
    case Message::Kind::kRelease: table_.take_back(message.id, sender, message.count); return;
    case Message::Kind::kPinsReleased: return end_task(message.token);
    case Message::Kind::kResultsTaken: {
      auto node = untaken_.extract({from, message.token});
      if (!node.empty())
        for (Entry* entry : node.mapped()) table_.unpin(entry);
      return;
    }
    case Message::Kind::kPush: {
      Incoming task{from, message.token, message.id, {}, {}};
      for (const Ref& ref : message.refs) {
        Entry* entry = adopt(ref);
        task.locals.push_back(entry);
        if (entry->owner != nullptr && entry->grants_in == 0) {
          table_.pin(entry);
          task.borrowed.push_back(entry);
        }
      }
      running_.push_back(std::move(task));
      return;
    }
    case Message::Kind::kDone: {
      std::vector<Entry*> foreign;
      const bool any_foreign = std::any_of(message.refs.begin(), message.refs.end(), [&](const Ref& ref) {
        return ref.owner != self_ && ref.owner != from;
      });
      take_result(table_.find(tasks_.at(message.token).result), message, from, foreign);
      if (any_foreign &&
          table_.register_then(foreign, sender, {Obligation::Kind::kResultsTaken, sender, message.token, {}}))
        results_taken(sender, message.token);
      if (message.holds)
        tasks_.at(message.token).holding = true;
      else
        end_task(message.token);
      return;
    }
    case Message::Kind::kGet: {
      Entry* entry = table_.find(message.id);
      if (entry == nullptr || entry->owner != nullptr)
        return send(sender, {.kind = Message::Kind::kValue, .id = message.id, .gone = true});
      if (entry->ready()) return answer(sender, entry);
      if (!entry->remote_waiters) entry->remote_waiters = std::make_unique<std::vector<Peer*>>();
      entry->remote_waiters->push_back(sender);
      return;
    }
    case Message::Kind::kValue: {
      Entry* entry = table_.find(message.id);
      if (entry != nullptr && (entry->owner != sender || entry->ready())) entry = nullptr;
      std::vector<Entry*> foreign;
      take_result(entry, message, from, foreign);
      if (foreign.empty()) return;
      table_.pin(entry);
      if (table_.register_then(foreign, sender, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
        table_.unpin(entry);
      return;
    }
    case Message::Kind::kDied: return died(from);
    case Message::Kind::kHeirHasNone: {
      Entry* entry = table_.find(message.id);
      if (entry != nullptr && table_.last_answer(message.id)) {
        table_.pin(entry);
        entry->grants_in = 0;
        if (!entry->ready()) resolve(entry);
        table_.unpin(entry);
      }
      return table_.registered(message.id);
    }
  }
}

void Process::died(uint32_t who) {
  peers_[who].state = Peer::State::kDead;
  std::vector<uint64_t> ended;
  for (auto& [token, task] : tasks_)
    if (task.worker == who) ended.push_back(token);
  for (uint64_t token : ended) {
    if (Entry* entry = table_.find(tasks_.at(token).result); entry != nullptr && !entry->ready())
      resolve(entry);
    end_task(token);
  }
  for (auto next = untaken_.begin(); next != untaken_.end();) {
    if (next->first.first != who) {
      ++next;
      continue;
    }
    std::vector<Entry*> held = std::move(next->second);
    next = untaken_.erase(next);
    for (Entry* entry : held) table_.unpin(entry);
  }
  table_.peer_died(&peers_[who]);
}

bool Process::drop_everything() {
  bool any = !held_.empty() || !running_.empty();
  while (!running_.empty()) end_some_task();
  while (!held_.empty()) drop_some();
  return any;
}

std::string Process::leftovers() const {
  if (table_.size() + tasks_.size() + untaken_.size() == 0) return "";
  return std::to_string(table_.size()) + " objects, " + std::to_string(tasks_.size()) + " tasks, " +
         std::to_string(untaken_.size()) + " results that were not taken";
}

TEST(OwnershipProperty, NothingThatIsHeldIsFreedAndNothingLeaks) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::string failure = Cluster(seed, 2 + seed % 4, false).run(600);
    ASSERT_EQ(failure, "") << "seed " << seed;
  }
}

TEST(OwnershipProperty, DeathsCostOnlyWhatTheDeadHeld) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::string failure = Cluster(seed, 3 + seed % 4, true).run(600);
    ASSERT_EQ(failure, "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace skate::worker
