/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot.h"

#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

static const uint64_t no_limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};

static struct broker *make_broker(void)
{
    struct broker_config config = {
        .total_bytes = GIB,
        .n_classes = 1,
        .class_bytes = {2 * MIB},
        .budget_bytes = GIB,
        .warm_max = 100,
        .creating_max = 4,
        .look_ns = NSEC_PER_SEC,
    };
    struct broker *broker;

    check_eq(broker_new(&config, GIB, 1, &broker), 0);
    return broker;
}

static struct broker_peer *join(struct broker *broker, const char *domain, const char *name,
                                struct snapshot_peer *facts)
{
    struct broker_peer *peer;

    check_eq(broker_peer_new(broker, domain, name, 1, no_limits, &peer), 0);
    peer->owner = facts;
    return peer;
}

static void settle(struct broker *broker)
{
    struct broker_action action;

    while (broker_next_action(broker, &action))
        ;
}

static void leave(struct broker *broker, struct broker_peer *peer)
{
    broker_peer_dead(broker, peer, 2);
    settle(broker);
}

TEST(names)
{
    char domain[BROKER_DOMAIN_MAX + 1], longest[BROKER_DOMAIN_MAX + 8];
    const char *instance;

    check(snapshot_split("llama", domain, &instance));
    check_str(domain, "");
    check_str(instance, "llama");
    check(snapshot_split("uid:1@/a/b/llama", domain, &instance));
    check_str(domain, "uid:1@/a/b");
    check_str(instance, "llama");
    check(!snapshot_split("", domain, &instance));
    check(!snapshot_split("d/", domain, &instance));
    check(!snapshot_split("/x", domain, &instance));
    memset(longest, 'd', BROKER_DOMAIN_MAX);
    strcpy(longest + BROKER_DOMAIN_MAX, "/x");
    check(snapshot_split(longest, domain, &instance));
    memset(longest, 'd', BROKER_DOMAIN_MAX + 1);
    strcpy(longest + BROKER_DOMAIN_MAX + 1, "/x");
    check(!snapshot_split(longest, domain, &instance));
    memset(longest, 'i', BROKER_NAME_MAX + 1);
    longest[BROKER_NAME_MAX + 1] = '\0';
    check(!snapshot_split(longest, domain, &instance));
}

TEST(found_by_name)
{
    struct snapshot_peer facts = {.pid = 7};
    struct broker *broker = make_broker();
    struct broker_peer *a = join(broker, "uid:1", "llama", &facts),
                       *b = join(broker, "uid:2", "llama", &facts);
    struct broker_peer *c = join(broker, "uid:2", "qwen", &facts);
    struct broker_instance *instance;
    char reason[SNAPSHOT_REASON_MAX];

    check_eq(snapshot_find(broker, "qwen", &instance, reason), 0);
    check(instance == c->instance);
    check_eq(snapshot_find(broker, "uid:1/llama", &instance, reason), 0);
    check(instance == a->instance);
    check_eq(snapshot_find(broker, "uid:1/qwen", &instance, reason), SNAPSHOT_E_NOT_FOUND);
    check_eq(snapshot_find(broker, "llama", &instance, reason), SNAPSHOT_E_AMBIGUOUS);
    check(strstr(reason, "uid:1/llama") && strstr(reason, "uid:2/llama"));
    check(instance == a->instance);
    leave(broker, a);
    leave(broker, b);
    leave(broker, c);
    broker_free(broker);
}

TEST(instance_as_message)
{
    struct snapshot_peer facts = {
        .pid = 7, .role = KVCACHED__ROLE__ROLE_WORKER, .connected = true, .program = "p"};
    struct broker *broker = make_broker();
    struct broker_peer *peer = join(broker, "d", "llama", &facts);
    Kvcached__InstanceInfo *info;

    check_eq(broker_set_limit(broker, "d", "llama", BROKER_LIMIT_ADMIN, 5 * MIB), 0);
    check_eq(snapshot_instance(broker, peer->instance, &info), 0);
    check_str(info->domain, "d");
    check_str(info->instance, "llama");
    check_eq(info->limit_bytes, 5 * MIB);
    check_eq(info->limit_source, KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN);
    check_eq(info->used_bytes, 0);
    check(!info->over_limit);
    check_eq(info->n_peers, 1);
    check_eq(info->peers[0]->pid, 7);
    check_eq(info->peers[0]->role, KVCACHED__ROLE__ROLE_WORKER);
    check_str(info->peers[0]->program, "p");
    snapshot_instance_free(info);
    leave(broker, peer);
    broker_free(broker);
}

TEST(only_what_somebody_cares_about_is_listed)
{
    struct snapshot_peer facts = {0};
    struct broker *broker = make_broker();
    struct broker_peer *peer = join(broker, "d", "b", &facts);
    char *names[] = {(char *)"d/a", (char *)"c"};
    Kvcached__ListReply *reply;
    const char *missing;

    check_eq(broker_set_limit(broker, "d", "a", BROKER_LIMIT_ADMIN, MIB), 0);
    check_eq(snapshot_list(broker, NULL, 0, 0, &reply, &missing), 0);
    check_eq(reply->n_instances, 2);
    check_eq(reply->next, 0);
    snapshot_list_free(reply);
    check_eq(snapshot_list(broker, names, 1, 0, &reply, &missing), 0);
    check_eq(reply->n_instances, 1);
    check_str(reply->instances[0]->instance, "a");
    snapshot_list_free(reply);
    check_eq(snapshot_list(broker, names, 2, 0, &reply, &missing), SNAPSHOT_E_NOT_FOUND);
    check_str(missing, "c");
    check_eq(broker_set_limit(broker, "d", "a", BROKER_LIMIT_ADMIN, UINT64_MAX), 0);
    leave(broker, peer);
    check_eq(snapshot_list(broker, NULL, 0, 0, &reply, &missing), 0);
    check_eq(reply->n_instances, 0);
    snapshot_list_free(reply);
    broker_free(broker);
}

/* Every page fits a frame, and together they hold everybody once, the one whose page is full of peers too. */
TEST(pages)
{
    enum { N = 600, CROWD = 3 * SNAPSHOT_PEERS_MAX };
    static struct broker_peer *peers[N + CROWD];
    struct snapshot_peer facts = {.pid = INT32_MAX, .role = KVCACHED__ROLE__ROLE_WORKER, .connected = true};
    struct broker *broker = make_broker();
    unsigned n_listed = 0, n_pages = 0;
    Kvcached__ListReply *reply;
    const char *missing;
    uint64_t cursor = 0;
    char domain[BROKER_DOMAIN_MAX + 1];

    memset(facts.program, 'p', SNAPSHOT_PROGRAM_MAX);
    memset(domain, 'd', BROKER_DOMAIN_MAX);
    domain[BROKER_DOMAIN_MAX] = '\0';
    for (unsigned i = 0; i < N; i++) {
        char name[16];

        snprintf(name, sizeof(name), "i%u", i);
        peers[i] = join(broker, domain, name, &facts);
    }
    for (unsigned i = N; i < N + CROWD; i++)
        peers[i] = join(broker, domain, "i300", &facts);
    do {
        check_eq(snapshot_list(broker, NULL, 0, cursor, &reply, &missing), 0);
        check(codec_size(&reply->base) <= FRAME_SIZE_MAX);
        check(reply->n_instances > 0);
        n_listed += reply->n_instances;
        n_pages++;
        cursor = reply->next;
        snapshot_list_free(reply);
    } while (cursor);
    check_eq(n_listed, N);
    check(n_pages > 1);
    for (unsigned i = 0; i < N + CROWD; i++)
        leave(broker, peers[i]);
    broker_free(broker);
}
