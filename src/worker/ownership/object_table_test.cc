// The rules at the head of object_table.h one by one. All of them at once, with processes that pass refs on,
// drop them, hand over and die: src/sim/sim_objects.h.
#include "worker/ownership/object_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST_F(ObjectTableTest, AValueThatIsHereIsKeptByTheHeirForWhoGetsTheRefNext) {
  Entry* entry = borrowed(1);
  const ObjectId id = entry->id;
  entry->handles = 1;
  table.received_grant(entry, 1);
  entry->state = ObjectState::kInline;
  table.peer_died(&owner);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"register", &owner, id, 1}}));
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)))
      << "whose cover may go once the heir knows of this hold";
  table.registered(id);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"results_taken", &other, {}, 7}}));
  table.drop_handle(entry);
  EXPECT_EQ(effects.take(), (std::vector<Sent>{{"release", &owner, id, 1}}));
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

TEST_F(ObjectTableTest, WhoWaitsForARefThatWasDroppedMovesOnWhenItsOwnerDies) {
  Entry* entry = borrowed(1);
  entry->handles = 1;
  EXPECT_FALSE(table.register_then({entry}, &other, taken(&other, 7)));
  table.drop_handle(entry);
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

TEST_F(ObjectTableTest, WhatAGivenObjectContainsIsGivenThoughItsHoldersLetGoMeanwhile) {
  Entry* outer = own(1);
  Entry* inner = own(2);
  for (Entry* entry : {outer, inner}) entry->state = ObjectState::kInline;
  table.contain(outer, {inner});
  table.grant(outer, &other, 1);
  EXPECT_THAT(table.give(~uint64_t{0}, 1), testing::ElementsAre(outer));
  EXPECT_TRUE(table.take_back(outer->id, &other, 1));
  EXPECT_THAT(table.give(~uint64_t{0}, 1), testing::ElementsAre(inner))
      << "the heir keeps outer, and so inner";
  EXPECT_TRUE(table.give(~uint64_t{0}, 1).empty());
  table.take_home();
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

}  // namespace
}  // namespace skate::worker
