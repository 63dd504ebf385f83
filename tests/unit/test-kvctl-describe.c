/* SPDX-License-Identifier: Apache-2.0 */
#include "describe.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

static void expect_instance(const Kvcached__InstanceInfo *info, const char *text)
{
    char *printed = NULL;
    size_t size;
    FILE *out = open_memstream(&printed, &size);

    describe_instance(out, info);
    fclose(out);
    check_str(printed, text);
    free(printed);
}

TEST(an_instance_at_peace)
{
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;

    info.domain = (char *)"uid-0";
    info.instance = (char *)"vllm";
    info.limit_bytes = 8 * GIB;
    info.limit_source = KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET;
    expect_instance(&info, "IPC           vllm\n"
                           "Trust domain  uid-0\n"
                           "Limit              8.00 GB  (8589934592 bytes)\n"
                           "  source      none of its own: the daemon's budget\n"
                           "Used                   0 B  (0 bytes), 0.0 % of the limit\n"
                           "  granted              0 B  (0 bytes)\n"
                           "  leased               0 B  (0 bytes), set aside for it, not handed over\n"
                           "  pending              0 B  (0 bytes), promised to requests that wait\n"
                           "  limbo                0 B  (0 bytes), of lost processes, not yet proven free\n"
                           "Processes     none\n");
}

TEST(an_instance_in_trouble)
{
    Kvcached__PeerInfo engine = KVCACHED__PEER_INFO__INIT, gone = KVCACHED__PEER_INFO__INIT;
    Kvcached__PeerInfo *peers[] = {&engine, &gone};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;

    engine.pid = 12;
    engine.program = (char *)"python3";
    engine.role = KVCACHED__ROLE__ROLE_ENGINE;
    engine.connected = true;
    gone.pid = 13;
    gone.program = (char *)"\033c";
    gone.role = KVCACHED__ROLE__ROLE_WORKER;
    info.domain = (char *)"tenant";
    info.instance = (char *)"sglang";
    info.limit_bytes = 0;
    info.limit_source = KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN;
    info.used_bytes = 6 * MIB;
    info.granted_bytes = 4 * MIB;
    info.leased_bytes = 1 * MIB;
    info.limbo_bytes = 2 * MIB;
    info.over_limit = true;
    info.frozen = true;
    info.missed_notice = true;
    info.n_peers = 2;
    info.peers = peers;
    expect_instance(&info,
                    "IPC           sglang\n"
                    "Trust domain  tenant\n"
                    "Limit                  0 B  (0 bytes)\n"
                    "  source      set with kvctl\n"
                    "Used               6.00 MB  (6291456 bytes)\n"
                    "  granted          4.00 MB  (4194304 bytes)\n"
                    "  leased           1.00 MB  (1048576 bytes), set aside for it, not handed over\n"
                    "  pending              0 B  (0 bytes), promised to requests that wait\n"
                    "  limbo            2.00 MB  (2097152 bytes), of lost processes, not yet proven free\n"
                    "Over limit    by 6.00 MB: nothing is granted until it returns memory\n"
                    "Missed notice it was asked to return memory and has not: nothing new is granted\n"
                    "Frozen        by an administrator: nothing is granted, nobody may join\n"
                    "Processes     pid 12 (python3), engine\n"
                    "              pid 13 (\\x1bc), worker, has disconnected and is still running\n");
}

TEST(an_instance_that_is_expected)
{
    Kvcached__PeerInfo controller = KVCACHED__PEER_INFO__INIT, *peers[] = {&controller};
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;

    controller.pid = 12;
    controller.program = (char *)"kvcached-ctl";
    controller.role = KVCACHED__ROLE__ROLE_CONTROLLER;
    controller.connected = true;
    info.domain = (char *)"uid-0";
    info.instance = (char *)"vllm";
    info.limit_bytes = 8 * GIB;
    info.limit_source = KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET;
    info.used_bytes = info.reserved_bytes = 2 * GIB;
    info.n_peers = 1;
    info.peers = peers;
    expect_instance(&info,
                    "IPC           vllm\n"
                    "Trust domain  uid-0\n"
                    "Limit              8.00 GB  (8589934592 bytes)\n"
                    "  source      none of its own: the daemon's budget\n"
                    "Used               2.00 GB  (2147483648 bytes), 25.0 % of the limit\n"
                    "  granted              0 B  (0 bytes)\n"
                    "  leased               0 B  (0 bytes), set aside for it, not handed over\n"
                    "  pending              0 B  (0 bytes), promised to requests that wait\n"
                    "  reserved         2.00 GB  (2147483648 bytes), promised to what it asks for next\n"
                    "  limbo                0 B  (0 bytes), of lost processes, not yet proven free\n"
                    "Processes     pid 12 (kvcached-ctl), controller\n");
}

TEST(a_daemon)
{
    Kvcached__InfoReply info = KVCACHED__INFO_REPLY__INIT;
    char *printed = NULL;
    size_t size;
    FILE *out = open_memstream(&printed, &size);

    info.gpu_uuid = (char *)"GPU-1";
    info.gpu_name = (char *)"Emulated GPU";
    info.emulated_folder = (char *)"/dev/shm/kvcached-emu-0/";
    info.daemon_version = (char *)"0.1.0";
    info.protocol_version = 1;
    info.total_bytes = 80 * GIB;
    info.budget_bytes = 76 * GIB;
    info.held_bytes = 10 * MIB;
    info.granted_bytes = 2 * MIB;
    info.leased_bytes = 1 * MIB;
    info.pool_bytes = 8 * MIB;
    info.warm_bytes = 6 * MIB;
    info.instances = 2;
    info.peers = 1;
    describe_daemon(out, &info, "/tmp/s.ctl");
    fclose(out);
    check_str(printed, "GPU           0, Emulated GPU, GPU-1\n"
                       "Emulated in   /dev/shm/kvcached-emu-0/\n"
                       "Version       daemon 0.1.0, protocol 1; kvctl " KVCACHED_VERSION "\n"
                       "Socket        /tmp/s.ctl\n"
                       "Total             80.00 GB  (85899345920 bytes)\n"
                       "Free                   0 B  (0 bytes), when last looked at\n"
                       "Foreign                0 B  (0 bytes), used by others than engines here\n"
                       "Budget            76.00 GB  (81604378624 bytes), what the daemon may have\n"
                       "Headroom               0 B  (0 bytes), kept free\n"
                       "Held              10.00 MB  (10485760 bytes), what the daemon has\n"
                       "  granted          2.00 MB  (2097152 bytes), to engines\n"
                       "  leased           1.00 MB  (1048576 bytes), set aside for engines, not handed over\n"
                       "  pool             8.00 MB  (8388608 bytes), ready for engines\n"
                       "    warm           6.00 MB  (6291456 bytes), at once\n"
                       "  creating             0 B  (0 bytes)\n"
                       "  limbo                0 B  (0 bytes), of lost processes, not yet proven free\n"
                       "  destroying           0 B  (0 bytes), until the driver shows it free\n"
                       "Instances     2, with 1 process\n");
    free(printed);
}

TEST(a_daemon_that_expects_something)
{
    Kvcached__InfoReply info = KVCACHED__INFO_REPLY__INIT;
    char *printed = NULL;
    size_t size;
    FILE *out = open_memstream(&printed, &size);

    info.gpu_uuid = info.gpu_name = info.emulated_folder = info.daemon_version = (char *)"";
    info.reserved_bytes = GIB;
    info.expected_bytes = 2 * GIB;
    describe_daemon(out, &info, "/tmp/s.ctl");
    fclose(out);
    check(strstr(printed, "Reserved           1.00 GB  (1073741824 bytes), of the budget, for what instances "
                          "ask for next\n"
                          "Expected           2.00 GB  (2147483648 bytes), that engines will take by "
                          "themselves\n"));
    free(printed);
}
