/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

static void expect(cJSON *value, const char *text)
{
    char *printed;

    check(value);
    printed = cJSON_PrintUnformatted(value);
    check_str(printed, text);
    cJSON_free(printed);
    cJSON_Delete(value);
}

TEST(no_instances)
{
    expect(json_instances(NULL, 0), "[]");
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
    info.over_limit = true;
    expect(
        json_instance(&info),
        "{\"ipc\":\"vllm\",\"domain\":\"uid-0\",\"limit_bytes\":8589934592,\"limit_source\":\"config\","
        "\"used_bytes\":9007199254740993,\"granted_bytes\":18446744073709551615,\"limbo_bytes\":2,"
        "\"pending_bytes\":3,\"leased_bytes\":4,\"over_limit\":true,\"missed_notice\":false,\"frozen\":false,"
        "\"peers\":[]}");
    info.n_peers = 2;
    info.peers = peers;
    info.frozen = true;
    info.missed_notice = true;
    expect(
        json_instances(infos, 1),
        "[{\"ipc\":\"vllm\",\"domain\":\"uid-0\",\"limit_bytes\":8589934592,\"limit_source\":\"config\","
        "\"used_bytes\":9007199254740993,\"granted_bytes\":18446744073709551615,\"limbo_bytes\":2,"
        "\"pending_bytes\":3,\"leased_bytes\":4,\"over_limit\":true,\"missed_notice\":true,\"frozen\":true,"
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
    info.limbo_bytes = 12;
    info.destroying_bytes = 13;
    info.instances = 14;
    info.peers = 15;
    expect(
        json_daemon(&info, "/run/kvcached/gpu1.sock.ctl"),
        "{\"gpu\":{\"index\":1,\"uuid\":\"GPU-1\",\"name\":\"Emulated\",\"emulated\":true,"
        "\"emulated_folder\":\"/dev/shm/x\"},\"socket\":\"/run/kvcached/gpu1.sock.ctl\","
        "\"daemon_version\":\"0.1.0\",\"protocol_version\":1,\"total_bytes\":2,\"free_bytes\":3,"
        "\"foreign_bytes\":4,\"budget_bytes\":5,\"headroom_bytes\":6,\"held_bytes\":7,\"creating_bytes\":8,"
        "\"pool_bytes\":9,\"warm_bytes\":10,\"leased_bytes\":16,\"granted_bytes\":11,\"limbo_bytes\":12,"
        "\"destroying_bytes\":13,"
        "\"instances\":14,\"peers\":15}");
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

static int allowed;

static void *scarce(size_t size)
{
    return allowed-- > 0 ? malloc(size) : NULL;
}

TEST(out_of_memory_is_no_half_object)
{
    Kvcached__PeerInfo peer = KVCACHED__PEER_INFO__INIT, *peers[] = {&peer};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT, *infos[] = {&info};
    cJSON_Hooks hooks = {.malloc_fn = scarce, .free_fn = free};
    cJSON *value = NULL;
    int n;

    info.n_peers = 1;
    info.peers = peers;
    cJSON_InitHooks(&hooks);
    for (n = 0; !value && n < 1000; n++) {
        allowed = n;
        value = json_instances(infos, 1);
    }
    check(n > 20 && n < 1000);
    check(cJSON_GetObjectItem(cJSON_GetArrayItem(value, 0), "peers"));
    cJSON_Delete(value);
}
