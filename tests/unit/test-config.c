/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "log.h"
#include "test.h"

static struct config *parse(const char *text)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config *config;

    if (config_parse(text, "f", &config, error) != 0)
        test_fail(__FILE__, __LINE__, "\"%s\" gave: %s", text, error);
    return config;
}

static void expect_error(const char *text, const char *expected)
{
    char error[CONFIG_ERROR_MAX] = "";
    struct config *config = NULL;

    check_eq(config_parse(text, "f", &config, error), -EINVAL);
    check(!config);
    if (!strstr(error, expected) || strchr(error, '\n'))
        test_fail(__FILE__, __LINE__, "\"%s\" gave: %s", text, error);
}

TEST(empty)
{
    struct config *config = parse("\n# nothing\n; at all\n");

    check(!config->socket);
    check(config->budget_bytes == CONFIG_UNSET);
    check(config->log_level == CONFIG_UNSET);
    check_eq(config->n_domains, 0);
    check_eq(config->n_limits, 0);
    check(config_limit(config, "uid:1", "a", 8 * GIB) == UINT64_MAX);
    config_free(config);
}

TEST(all_keys)
{
    struct config *config = parse("[daemon]\n"
                                  "socket = /run/x.sock\n"
                                  "  socket-group = gpu users ; who\n"
                                  "admin-group=wheel\n"
                                  "state-dir=/var/x\n"
                                  "budget=40G\n"
                                  "utilization=0.5\n"
                                  "headroom=0\n"
                                  "reserve=1G\n"
                                  "warm=100\n"
                                  "idle=0.25\n"
                                  "metrics-listen=[::1]:0\n"
                                  "log-level=debug\n"
                                  "[domain tenant-a]\n"
                                  "socket=/run/a/s\n"
                                  "mode=0666\n"
                                  "[domain b]\n"
                                  "group=b\n"
                                  "socket=/run/b/s");

    check_str(config->socket, "/run/x.sock");
    check_str(config->socket_group, "gpu users");
    check_str(config->admin_group, "wheel");
    check_str(config->state_dir, "/var/x");
    check(config->budget_bytes == 40 * GIB);
    check_eq(config->utilization_ppm, 500000);
    check_eq(config->headroom_bytes, 0);
    check(config->reserve_bytes == GIB);
    check_eq(config->warm_extents, 100);
    check_eq(config->idle_ns, 250 * NSEC_PER_MSEC);
    check_eq(config->log_level, LOG_LEVEL_DEBUG);
    check_eq(config->n_domains, 2);
    check_str(config->domains[0].name, "tenant-a");
    check_eq(config->domains[0].mode, 0666);
    check(!config->domains[0].group);
    check_str(config->domains[1].group, "b");
    check(config->domains[1].mode == CONFIG_UNSET);
    config_free(config);
}

TEST(errors_name_file_line_key_and_form)
{
    expect_error("[daemon]\nbudget=12Q\n", "f:2: budget=12Q: expected a size such as");
    expect_error("[daemon]\n\n\nbudgt=1G\n", "f:4: budgt is not a key of [daemon]; it has socket,");
    expect_error("[deamon]\nbudget=1G\n", "f:1: [deamon] is not a section; there are [daemon],");
    expect_error("budget=1G\n", "f:1: budget stands before the first section; there are [daemon],");
    expect_error("[daemon]\nbudget\n", "f:2: expected [section] or key=value");
    expect_error("[daemon\n", "f:1: expected [section]");
    expect_error("[daemon]\nbudget=1G\nbudget=2G\n", "f:3: budget is given twice");
    expect_error("[daemon]\nbudget=0\n", "f:2: budget=0: expected a size");
    expect_error("[daemon]\nutilization=1.5\n", "above 0 and at most 1");
    expect_error("[daemon]\nutilization=0\n", "above 0 and at most 1");
    expect_error("[daemon]\nwarm=-1\n", "f:2: warm=-1: expected a number of extents");
    expect_error("[daemon]\nlog-level=loud\n", "expected error, warning, notice, info or debug");
    expect_error("[daemon]\nsocket=run/x\n", "expected an absolute path");
    expect_error("[daemon x]\nbudget=1G\n", "is not a section");
    expect_error("[instance]\nlimit=1G\n", "is not a section");
    expect_error("[instance a]\nlimit=120%\n", "f:2: limit=120%: expected a size such as 8G or a percentage");
    expect_error("[instance a]\nlimit=%\n", "expected a size");
    expect_error("[instance a]\nlimit=1G\n[instance a]\nlimit=2G\n", "f:3: [instance a] is given twice");
    expect_error("[instance a]\nlimit=1G\nlimit=10%\n", "f:3: limit is given twice");
    expect_error("[instance a]\n", "f:1: [instance a] has no limit");
    expect_error("\n[domain a]\ngroup=x\n[daemon]\nwarm=1\n", "f:2: [domain a] has no socket");
    expect_error("[domain a]\n", "f:1: [domain a] has no socket");
    expect_error("[domain uid:5]\nsocket=/x\n", "a domain's name has");
    expect_error("[domain a]\nsocket=/x\nmode=0777\n", "f:3: mode=0777: expected an octal mode");
    expect_error("[domain a]\nsocket=/x\nmode=066x\n", "expected an octal mode");
}

TEST(sections_without_keys_are_looked_at)
{
    expect_error("\n[deamon]\n", "f:2: [deamon] is not a section; there are [daemon], [gpu NUMBER or UUID],");
    expect_error("[]\n", "f:1: [] is not a section");
    expect_error("[daemon] budget=1G\n", "f:1: expected [section] or key=value");
    expect_error("[gpu]\n", "f:1: [gpu] is not a section");
    expect_error("[gpu first]\n",
                 "f:1: [gpu first]: expected the number of a GPU, in PCI order, or its UUID");
    expect_error("[gpu -1]\n", "expected the number of a GPU");
    expect_error("[gpu 65536]\n", "expected the number of a GPU");
    expect_error("[gpu GPU-00]\n", "expected the number of a GPU");
    expect_error("[gpu GPU-00000000-0000-0000-0000-00000000000g]\n", "expected the number of a GPU");
    expect_error("[gpu 0]\nbudgt=1G\n", "f:2: budgt is not a key of [gpu]; it has socket,");
    expect_error("[gpu 0]\nbudget=1G\n[gpu 00]\nbudget=1G\n", "f:4: budget is given twice");
    config_free(parse("\xef\xbb\xbf[daemon] # all\n[gpu 0] ; one\r\n"));
}

TEST(long_names_and_brackets_are_kept)
{
    static const char text[] =
        "[instance a-name-of-more-than-forty-nine-characters-that-ends-in-[ab]*]\nlimit=1G\n"
        "[domain tenant-with-a-name-of-more-than-forty-nine-characters-1]\nsocket=/1\n"
        "[domain tenant-with-a-name-of-more-than-forty-nine-characters-2]\nsocket=/2\n";
    struct config *config = parse(text);

    check_eq(config->n_domains, 2);
    check_str(config->domains[1].name, "tenant-with-a-name-of-more-than-forty-nine-characters-2");
    check(config_limit(config, "d", "a-name-of-more-than-forty-nine-characters-that-ends-in-b7", GIB) == GIB);
    check(config_limit(config, "d", "a-name-of-more-than-forty-nine-characters-that-ends-in-c7", GIB) ==
          UINT64_MAX);
    config_free(config);
}

TEST(long_file_names_leave_room_for_the_error)
{
    char file[600], error[CONFIG_ERROR_MAX] = "";
    struct config *config = NULL;

    memset(file, 'x', sizeof(file) - 1);
    file[sizeof(file) - 1] = '\0';
    check_eq(config_parse("[daemon]\nbudget=much\n", file, &config, error), -EINVAL);
    check(strstr(error, ":2: budget=much: expected a size such as 512M or 40G"));
}

#define UUID "GPU-00000000-1111-2222-3333-44444444abcd"

TEST(sections_of_gpus)
{
    static const char text[] = "[gpu " UUID "]\nbudget=3G\n"
                               "[daemon]\nbudget=1G\nreserve=5M\nsocket=/d/gpu%i.sock\nadmin-group=wheel\n"
                               "[gpu 1]\nbudget=2G\nsocket=/e/100%%/%u\nlog-level=debug\n"
                               "[gpu 1]\nwarm=7\n"
                               "[domain d]\nsocket=/t/gpu%i.sock\n";
    struct config *config = parse(text);

    check(config->budget_bytes == GIB);
    check_eq(config_for_gpu(config, 0, "GPU-0"), 0);
    check(config->budget_bytes == GIB);
    check_str(config->socket, "/d/gpu0.sock");
    check_str(config->domains[0].socket, "/t/gpu0.sock");
    config_free(config);

    config = parse(text);
    check_eq(config_for_gpu(config, 1, "GPU-1"), 0);
    check(config->budget_bytes == 2 * GIB);
    check_str(config->socket, "/e/100%/GPU-1");
    check_str(config->domains[0].socket, "/t/gpu1.sock");
    check_eq(config->reserve_bytes, 5 * MIB);
    check_eq(config->warm_extents, 7);
    check_eq(config->log_level, LOG_LEVEL_DEBUG);
    check_str(config->admin_group, "wheel");
    config_free(config);

    config = parse(text);
    check_eq(config_for_gpu(config, 1, "GPU-00000000-1111-2222-3333-44444444ABCD"), 0);
    check(config->budget_bytes == 3 * GIB); /* the UUID's section decides, wherever it stands */
    check_eq(config->warm_extents, 7);
    config_free(config);
}

TEST(percent_signs_in_paths)
{
    expect_error("[daemon]\nsocket=/%n\n",
                 "f:2: socket=/%n: expected an absolute path, where %i is the GPU's");
    expect_error("[daemon]\nstate-dir=/x%\n", "expected an absolute path");
    expect_error("[domain d]\nsocket=/x%%%\n", "expected an absolute path");
    expect_error("[daemon]\nsocket-group=\n", "expected the name or number of a group");
}

TEST(first_error_is_told)
{
    expect_error("[daemon]\nbudget=x\nreserve=y\n", "f:2:");
}

TEST(long_lines_are_refused)
{
    char text[1024] = "[daemon]\nsocket=/";

    memset(text + strlen(text), 'x', 900);
    expect_error(text, "f:2: the line is longer than");
}

TEST(too_many_domains)
{
    char text[8192] = "", *end = text;

    for (unsigned i = 0; i <= CONFIG_DOMAINS_MAX; i++)
        end += sprintf(end, "[domain d%u]\nsocket=/d%u\n", i, i);
    expect_error(text, "there may be 64 domains");
}

TEST(limits_by_pattern)
{
    struct config *config = parse("[instance llama-*]\nlimit=8G\n"
                                  "[instance tenant-?/qwen]\nlimit=25%\n"
                                  "[instance uid:1000/*]\nlimit=0\n"
                                  "[instance *]\nlimit=50%\n");

    check(config_limit(config, "uid:1000", "llama-70b", 80 * GIB) == 8 * GIB);
    check(config_limit(config, "tenant-a", "qwen", 80 * GIB) == 20 * GIB);
    check(config_limit(config, "tenant-ab", "qwen", 80 * GIB) == 40 * GIB);
    check_eq(config_limit(config, "uid:1000", "qwen", 80 * GIB), 0);
    check(config_limit(config, "uid:1001", "qwen", 80 * GIB) == 40 * GIB);
    config_free(config);
}

TEST(domains_with_slashes)
{
    struct config *config = parse("[instance uid:7@*/a]\nlimit=1G\n");

    check(config_limit(config, "uid:7@/kubepods/pod1/c1", "a", GIB) == GIB);
    check(config_limit(config, "uid:8@/kubepods/pod1/c1", "a", GIB) == UINT64_MAX);
    config_free(config);
}

TEST(parts_of_a_device)
{
    check_eq(config_part(0, 1000000), 0);
    check_eq(config_part(1999999, 500000), 999999);
    check(config_part(UINT64_MAX, 1000000) == UINT64_MAX);
    check(config_part(80 * GIB, 250000) == 20 * GIB);
}

TEST(what_a_reload_cannot_change)
{
    static const char *const other[] = {
        "[daemon]\nsocket=/b\n[domain d]\nsocket=/d\n",
        "[daemon]\nsocket=/a\nstate-dir=/s\n[domain d]\nsocket=/d\n",
        "[daemon]\nsocket=/a\nwarm=5\n[domain d]\nsocket=/d\n",
        "[daemon]\nsocket=/a\n[domain d]\nsocket=/e\n",
        "[daemon]\nsocket=/a\n[domain d]\nsocket=/d\nmode=0666\n",
        "[daemon]\nsocket=/a\n",
    };
    struct config *config = parse("[daemon]\nsocket=/a\n[domain d]\nsocket=/d\n");
    struct config *budget =
        parse("[daemon]\nbudget=1G\nsocket=/a\n[domain d]\nsocket=/d\n[instance a]\nlimit=1\n");

    check(!config_needs_restart(config, budget));
    config_free(budget);
    for (size_t i = 0; i < ARRAY_SIZE(other); i++) {
        struct config *changed = parse(other[i]);

        check(config_needs_restart(config, changed));
        config_free(changed);
    }
    config_free(config);
}
