/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

static Kvcached__InstanceInfo instance(const char *domain, const char *name, uint64_t limit, uint64_t used)
{
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;

    info.domain = (char *)domain;
    info.instance = (char *)name;
    info.limit_bytes = limit;
    info.used_bytes = used;
    return info;
}

static void expect(const struct table_style *style, Kvcached__InstanceInfo *infos, size_t n, const char *text)
{
    Kvcached__InstanceInfo *pointers[8];
    char *printed = NULL;
    size_t size;
    FILE *out = open_memstream(&printed, &size);

    check(n <= ARRAY_SIZE(pointers));
    for (size_t i = 0; i < n; i++)
        pointers[i] = &infos[i];
    table_print(out, style, pointers, n);
    fclose(out);
    check_str(printed, text);
    free(printed);
}

static const struct table_style plain;

TEST(empty)
{
    expect(&plain, NULL, 0, "No active KVCached segments found.\n");
}

TEST(rows)
{
    Kvcached__InstanceInfo infos[] = {
        instance("uid-0", "kvcached_vLLM_12345", 8 * GIB, GIB),
        instance("uid-0", "b", 1536 * MIB, 0),
        instance("uid-1", "c", 0, 2 * MIB),
        instance("uid-1", "d", 1023 * GIB, 1023 * GIB),
    };

    expect(&plain, infos, ARRAY_SIZE(infos),
           "IPC                             Limit         Used       %\n"
           "kvcached_vLLM_12345           8.00 GB      1.00 GB  12.5 %\n"
           "b                             1.50 GB          0 B   0.0 %\n"
           "c                                 0 B      2.00 MB       -\n"
           "d                          1023.00 GB   1023.00 GB 100.0 %\n");
}

TEST(domains_tell_equal_names_apart)
{
    Kvcached__InstanceInfo infos[] = {
        instance("uid-0", "vllm", 2 * GIB, GIB),
        instance("uid-1000", "vllm", 2 * GIB, GIB),
        instance("uid-1000", "sglang", 2 * GIB, GIB),
    };

    expect(&plain, infos, ARRAY_SIZE(infos),
           "IPC                             Limit         Used       %\n"
           "uid-0/vllm                    2.00 GB      1.00 GB  50.0 %\n"
           "uid-1000/vllm                 2.00 GB      1.00 GB  50.0 %\n"
           "sglang                        2.00 GB      1.00 GB  50.0 %\n");
}

TEST(long_names_widen_the_column)
{
    Kvcached__InstanceInfo infos[] = {
        instance("d", "a_name_of_thirty_characters_1_", 2 * GIB, GIB),
    };

    expect(&plain, infos, 1,
           "IPC                                   Limit         Used       %\n"
           "a_name_of_thirty_characters_1_      2.00 GB      1.00 GB  50.0 %\n");
}

/* A column of its own, where there is any. */
TEST(reserved)
{
    Kvcached__InstanceInfo infos[] = {instance("d", "a", GIB, GIB), instance("d", "b", GIB, 0)};
    const struct table_style width57 = {.width = 57}, width56 = {.width = 56};

    infos[0].reserved_bytes = 256 * MIB;
    expect(&plain, infos, 2,
           "IPC                             Limit         Used     Reserved       %\n"
           "a                             1.00 GB      1.00 GB    256.00 MB 100.0 %\n"
           "b                             1.00 GB          0 B          0 B   0.0 %\n");
    expect(&width57, infos, 1,
           "IPC               Limit         Used     Reserved       %\n"
           "a               1.00 GB      1.00 GB    256.00 MB 100.0 %\n");
    expect(&width56, infos, 1,
           "IPC                           Limit         Used       %\n"
           "a                           1.00 GB      1.00 GB 100.0 %\n");
}

TEST(colours)
{
    static const struct table_style colour = {.colour = true};
    Kvcached__InstanceInfo infos[] = {
        instance("d", "green", 1000, 499),   instance("d", "yellow", 1000, 500),
        instance("d", "yellow2", 1000, 799), instance("d", "red", 1000, 800),
        instance("d", "none", 0, 0),         instance("d", "much", 0, 1),
    };

    expect(&colour, infos, ARRAY_SIZE(infos),
           "IPC                             Limit         Used       %\n"
           "green                          1000 B        499 B\033[32m  49.9 %\033[0m\n"
           "yellow                         1000 B        500 B\033[33m  50.0 %\033[0m\n"
           "yellow2                        1000 B        799 B\033[33m  79.9 %\033[0m\n"
           "red                            1000 B        800 B\033[31m  80.0 %\033[0m\n"
           "none                              0 B          0 B\033[32m   0.0 %\033[0m\n"
           "much                              0 B          1 B\033[31m       -\033[0m\n");
}

TEST(notes)
{
    Kvcached__InstanceInfo infos[] = {
        instance("d", "a", GIB, 2 * GIB),
        instance("d", "b", GIB, 0),
        instance("d", "c", GIB, 2 * GIB),
    };
    const struct table_style width84 = {.width = 84}, width85 = {.width = 85};

    infos[0].over_limit = infos[0].frozen = true;
    infos[1].frozen = true;
    infos[2].over_limit = infos[2].missed_notice = true;
    expect(&plain, infos, 3,
           "IPC                             Limit         Used       %\n"
           "a                             1.00 GB      2.00 GB 200.0 %  over limit  frozen\n"
           "b                             1.00 GB          0 B   0.0 %  frozen\n"
           "c                             1.00 GB      2.00 GB 200.0 %  over limit  missed notice\n");
    /* As wide as the widest of them. */
    expect(&width85, infos + 2, 1,
           "IPC                             Limit         Used       %\n"
           "c                             1.00 GB      2.00 GB 200.0 %  over limit  missed notice\n");
    expect(&width84, infos + 2, 1,
           "IPC                             Limit         Used       %\n"
           "c                             1.00 GB      2.00 GB 200.0 %\n");
}

TEST(narrow_terminals)
{
    Kvcached__InstanceInfo infos[] = {instance("d", "kvcached_vLLM_12345", 8 * GIB, GIB)};
    const struct table_style width58 = {.width = 58}, width50 = {.width = 50}, width43 = {.width = 43},
                             width31 = {.width = 31}, width5 = {.width = 5};

    infos[0].over_limit = true;
    expect(&width58, infos, 1,
           "IPC                             Limit         Used       %\n"
           "kvcached_vLLM_12345           8.00 GB      1.00 GB  12.5 %\n");
    expect(&width50, infos, 1,
           "IPC                     Limit         Used       %\n"
           "~ched_vLLM_12345      8.00 GB      1.00 GB  12.5 %\n");
    expect(&width43, infos, 1,
           "IPC                            Used       %\n"
           "kvcached_vLLM_12345         1.00 GB  12.5 %\n");
    expect(&width31, infos, 1,
           "IPC                Used       %\n"
           "~LLM_12345      1.00 GB  12.5 %\n");
    expect(&width5, infos, 1,
           "IPC                Used       %\n"
           "~LLM_12345      1.00 GB  12.5 %\n");
}

TEST(names_are_cleaned)
{
    Kvcached__InstanceInfo infos[] = {instance("d", "a\033[31m", GIB, 0)};

    expect(&plain, infos, 1,
           "IPC                             Limit         Used       %\n"
           "a\\x1b[31m                     1.00 GB          0 B   0.0 %\n");
}
