/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"
#include "text.h"

static void expect(cJSON *value, const char *text)
{
    char *printed;

    check(value);
    printed = cJSON_PrintUnformatted(value);
    check_str(printed, text);
    cJSON_free(printed);
    cJSON_Delete(value);
}

static const struct json_origin old = {.gpu = 3}, recent = {.gpu = 3, .operations = true};

static cJSON *instances_array(Kvcached__InstanceInfo *const *instances, size_t n)
{
    cJSON *array = cJSON_CreateArray();

    if (json_add_instances(array, instances, n, &recent))
        return array;
    cJSON_Delete(array);
    return NULL;
}

TEST(no_instances)
{
    expect(instances_array(NULL, 0), "[]");
}

TEST(instances)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT, *peers[] = {&peer, &peer};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT, *infos[] = {&info, &info};

    peer.pid = 77;
    peer.role = KVCACHED__ROLE__ROLE_WORKER;
    peer.program = (char *)"py\"\033\xff";
    peer.connected = true;
    info.domain = (char *)"uid-0";
    info.instance = (char *)"vllm";
    info.limit_bytes = 8 * GIB;
    info.limit_source = KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_CONFIG;
    info.used_bytes = (UINT64_C(1) << 53) + 1; /* no double */
    info.granted_bytes = UINT64_MAX;
    info.limbo_bytes = 2;
    info.pending_bytes = 3;
    info.leased_bytes = 4;
    info.reserved_bytes = 12;
    info.over_limit = true;
    expect(json_instance(&info, &old),
           "{\"ipc\":\"vllm\",\"domain\":\"uid-0\",\"gpu\":3,\"limit_bytes\":8589934592,\"limit_source\":"
           "\"config\","
           "\"used_bytes\":9007199254740993,\"granted_bytes\":18446744073709551615,\"limbo_bytes\":2,"
           "\"pending_bytes\":3,\"leased_bytes\":4,\"reserved_bytes\":12,"
           "\"cached_bytes\":null,\"pinned_bytes\":null,\"wanted_bytes\":null,\"total_granted_bytes\":null,"
           "\"total_returned_bytes\":null,\"refusals\":null,\"serial\":null,"
           "\"over_limit\":true,\"missed_notice\":false,\"frozen\":false,"
           "\"peers\":[]}");
    info.n_peers = 2;
    info.peers = peers;
    info.frozen = true;
    info.missed_notice = true;
    info.cached_bytes = 5;
    info.pinned_bytes = 6;
    info.wanted_bytes = 7;
    info.total_granted_bytes = 8;
    info.total_returned_bytes = 9;
    info.refusals = 10;
    info.serial = 11;
    expect(instances_array(infos, 1),
           "[{\"ipc\":\"vllm\",\"domain\":\"uid-0\",\"gpu\":3,\"limit_bytes\":8589934592,\"limit_source\":"
           "\"config\","
           "\"used_bytes\":9007199254740993,\"granted_bytes\":18446744073709551615,\"limbo_bytes\":2,"
           "\"pending_bytes\":3,\"leased_bytes\":4,\"reserved_bytes\":12,"
           "\"cached_bytes\":5,\"pinned_bytes\":6,\"wanted_bytes\":7,\"total_granted_bytes\":8,"
           "\"total_returned_bytes\":9,\"refusals\":10,\"serial\":11,"
           "\"over_limit\":true,\"missed_notice\":true,\"frozen\":true,"
           "\"peers\":["
           "{\"pid\":77,\"role\":\"worker\",\"program\":\"py\\\"\\\\x1b\\\\xff\",\"connected\":true},"
           "{\"pid\":77,\"role\":\"worker\",\"program\":\"py\\\"\\\\x1b\\\\xff\",\"connected\":true}]}]");
}

TEST(daemons)
{
    Kvcached__InfoReply info = KVCACHED__INFO_REPLY__INIT;

    info.gpu_uuid = (char *)"GPU-1";
    info.gpu_name = (char *)"Emulated";
    info.emulated_folder = (char *)"/dev/shm/x";
    info.gpu_index = 1;
    info.daemon_version = (char *)"0.1.0";
    info.protocol_version = 1;
    info.total_bytes = 2;
    info.free_bytes = 3;
    info.foreign_bytes = 4;
    info.budget_bytes = 5;
    info.headroom_bytes = 6;
    info.held_bytes = 7;
    info.creating_bytes = 8;
    info.pool_bytes = 9;
    info.warm_bytes = 10;
    info.granted_bytes = 11;
    info.leased_bytes = 16;
    info.reserved_bytes = 20;
    info.expected_bytes = 21;
    info.limbo_bytes = 12;
    info.destroying_bytes = 13;
    info.instances = 14;
    info.peers = 15;
    info.cached_bytes = 17;
    info.wanted_bytes = 18;
    info.uptime_ms = 19;
    info.life = UINT64_MAX - 1;
    info.config_file = (char *)"/etc/kvcachedd.conf";
    info.metrics_address = (char *)"127.0.0.1:9471";
    expect(
        json_daemon(&info, "/run/kvcached/gpu1.sock.ctl", &recent),
        "{\"gpu\":{\"index\":1,\"uuid\":\"GPU-1\",\"name\":\"Emulated\",\"emulated\":true,"
        "\"emulated_folder\":\"/dev/shm/x\"},\"socket\":\"/run/kvcached/gpu1.sock.ctl\","
        "\"daemon_version\":\"0.1.0\",\"protocol_version\":1,\"total_bytes\":2,\"free_bytes\":3,"
        "\"foreign_bytes\":4,\"budget_bytes\":5,\"headroom_bytes\":6,\"held_bytes\":7,\"creating_bytes\":8,"
        "\"pool_bytes\":9,\"warm_bytes\":10,\"leased_bytes\":16,\"granted_bytes\":11,\"limbo_bytes\":12,"
        "\"destroying_bytes\":13,\"reserved_bytes\":20,\"expected_bytes\":21,\"cached_bytes\":17,\"wanted_"
        "bytes\":18,"
        "\"instances\":14,\"peers\":15,\"uptime_ms\":19,\"life\":\"fffffffffffffffe\","
        "\"config_file\":\"/etc/kvcachedd.conf\",\"metrics_address\":\"127.0.0.1:9471\"}");
}

TEST(events)
{
    Kvcached__Event event = KVCACHED__EVENT__INIT;

    event.number = 4;
    event.realtime_ms = 1700000000123;
    event.kind = KVCACHED__EVENT_KIND__EVENT_LOST;
    event.instance = (char *)"a";
    event.domain = (char *)"d";
    event.pid = 7;
    event.bytes = 5;
    event.text = (char *)"It\033 is gone";
    expect(json_event(&event, &recent),
           "{\"gpu\":3,\"number\":4,\"realtime_ms\":1700000000123,\"kind\":\"lost\",\"ipc\":\"a\","
           "\"domain\":\"d\",\"pid\":7,\"bytes\":5,\"text\":\"It\\\\x1b is gone\"}");
    event.kind = (Kvcached__EventKind)99;
    check_str(text_event_kind(event.kind), "unknown");
}

TEST(reasons)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT;
    Kvcached__WhyPart used = KVCACHED__WHY_PART__INIT, left = KVCACHED__WHY_PART__INIT,
                      *parts[] = {&used, &left};
    Kvcached__WhyLimit limit = KVCACHED__WHY_LIMIT__INIT, *limits[] = {&limit};
    Kvcached__WhyState over = KVCACHED__WHY_STATE__INIT, frozen = KVCACHED__WHY_STATE__INIT;
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;
    Kvcached__WhyReply reply = KVCACHED__WHY_REPLY__INIT;
    cJSON *value;

    used.holding = KVCACHED__HOLDING__HOLDING_USED;
    used.bytes = 5;
    used.for_ms = 6;
    used.peer = &peer;
    left.holding = KVCACHED__HOLDING__HOLDING_DESTROYING;
    limit.source = KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN;
    limit.bytes = 9;
    over.holds = true;
    over.for_ms = 8;
    reply.instance = &info;
    reply.n_parts = 2;
    reply.parts = parts;
    reply.n_limits = 1;
    reply.limits = limits;
    reply.pressure_bytes = 10;
    reply.over_limit = &over;
    reply.frozen = &frozen;
    value = json_why(&reply, &recent);
    check(value);
    cJSON_DeleteItemFromObject(value, "instance");
    expect(value, "{\"parts\":[{\"holding\":\"used\",\"bytes\":5,\"for_ms\":6,\"peer\":{\"pid\":0,"
                  "\"role\":\"unknown\",\"program\":\"\",\"connected\":false}},"
                  "{\"holding\":\"destroying\",\"bytes\":0,\"for_ms\":0,\"peer\":null}],"
                  "\"limits\":[{\"source\":\"admin\",\"bytes\":9}],\"pressure_bytes\":10,"
                  "\"over_limit_for_ms\":8,\"missed_notice_for_ms\":null,\"frozen_for_ms\":null}");
}

TEST(versions_and_reloads)
{
    Kvcached__Reloaded reloaded = KVCACHED__RELOADED__INIT;
    char *warnings[] = {(char *)"later"};

    expect(json_version("1.2", 1, &old), "{\"kvctl_version\":\"" KVCACHED_VERSION
                                         "\",\"gpu\":3,\"daemon_version\":\"1.2\",\"protocol_version\":1}");
    expect(json_reloaded(&reloaded, &old), "{\"warnings\":[],\"gpu\":3}");
    reloaded.n_warnings = 1;
    reloaded.warnings = warnings;
    expect(json_reloaded(&reloaded, &old), "{\"warnings\":[\"later\"],\"gpu\":3}");
}

TEST(deletions)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT, *peers[] = {&peer};
    Kvcached__DeleteReply reply = KVCACHED__DELETE_REPLY__INIT;

    expect(json_deletion("a", &reply), "{\"ipc\":\"a\",\"disconnected\":[]}");
    reply.n_peers = 1;
    reply.peers = peers;
    peer.pid = 1;
    expect(json_deletion("a", &reply),
           "{\"ipc\":\"a\",\"disconnected\":[{\"pid\":1,\"role\":\"unknown\",\"program\":\"\","
           "\"connected\":false}]}");
}

/* ---- Out of memory ---- */

static unsigned n_allocations, fail_at; /* 0: none */
static int n_live;

static void *allocate(size_t size)
{
    if (++n_allocations == fail_at)
        return NULL;
    n_live++;
    return malloc(size);
}

static void release(void *memory)
{
    n_live -= memory != NULL;
    free(memory);
}

/* Each makes something that needs more than one allocation, below the array. */
static bool add_instances(cJSON *array)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT, *peers[] = {&peer};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT, *infos[] = {&info, &info};

    info.n_peers = 1;
    info.peers = peers;
    return json_add_instances(array, infos, 2, &recent);
}

static bool add_daemon(cJSON *array)
{
    Kvcached__InfoReply info = KVCACHED__INFO_REPLY__INIT;

    return json_append(array, json_daemon(&info, "/run/x", &old));
}

static bool add_event(cJSON *array)
{
    Kvcached__Event event = KVCACHED__EVENT__INIT;

    return json_append(array, json_event(&event, &recent));
}

static bool add_reasons(cJSON *array)
{
    Kvcached__WhyPart part = KVCACHED__WHY_PART__INIT, *parts[] = {&part, &part};
    Kvcached__WhyLimit limit = KVCACHED__WHY_LIMIT__INIT, *limits[] = {&limit, &limit};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;
    Kvcached__WhyReply reply = KVCACHED__WHY_REPLY__INIT;

    reply.instance = &info;
    reply.n_parts = 2;
    reply.parts = parts;
    reply.n_limits = 2;
    reply.limits = limits;
    return json_append(array, json_why(&reply, &recent));
}

static bool add_reloaded(cJSON *array)
{
    Kvcached__Reloaded reloaded = KVCACHED__RELOADED__INIT;
    char *warnings[] = {(char *)"later", (char *)"never"};

    reloaded.n_warnings = 2;
    reloaded.warnings = warnings;
    return json_append(array, json_reloaded(&reloaded, &old));
}

static bool add_version(cJSON *array)
{
    return json_append(array, json_version("1.2", 1, &old));
}

static bool add_deletion(cJSON *array)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT, *peers[] = {&peer, &peer};
    Kvcached__DeleteReply reply = KVCACHED__DELETE_REPLY__INIT;

    reply.n_peers = 2;
    reply.peers = peers;
    return json_append(array, json_deletion("a", &reply));
}

/* Whichever allocation fails: either it is said, or nothing is missing. And nothing is left behind. */
static void fail_each(bool (*add)(cJSON *array))
{
    cJSON *whole, *array;
    unsigned n;

    fail_at = n_allocations = 0;
    whole = cJSON_CreateArray();
    check(add(whole));
    n = n_allocations;
    check(n > 2);
    for (unsigned at = 2; at <= n; at++) {
        int n_before = n_live;

        n_allocations = 0;
        fail_at = at;
        array = cJSON_CreateArray();
        check(array);
        check(!add(array));
        cJSON_Delete(array);
        check_eq(n_live, n_before);
    }
    cJSON_Delete(whole);
    check_eq(n_live, 0);
}

TEST(nothing_is_left_out_for_want_of_memory)
{
    cJSON_Hooks hooks = {.malloc_fn = allocate, .free_fn = release};

    cJSON_InitHooks(&hooks);
    fail_each(add_instances);
    fail_each(add_daemon);
    fail_each(add_event);
    fail_each(add_reasons);
    fail_each(add_reloaded);
    fail_each(add_version);
    fail_each(add_deletion);
    check(!json_append(NULL, NULL));
    cJSON_InitHooks(NULL);
}
