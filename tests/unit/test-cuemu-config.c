/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "cuda/driver.h"
#include "test.h"

TEST(sizes)
{
    uint64_t totals[EMU_MAX_DEVICES];
    char error[EMU_ERROR_MAX];
    unsigned n;

    check_eq(config_parse_sizes("80G,512M", totals, &n, error), 0);
    check_eq(n, 2);
    check_eq(totals[0], 80 * GIB);
    check_eq(totals[1], 512 * MIB);
    check_eq(config_parse_sizes("2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M", totals, &n, error), 0);
    check_eq(n, EMU_MAX_DEVICES);
}

TEST(bad_sizes)
{
    static const char *const bad[] = {"",
                                      "x",
                                      "0",
                                      "3M",
                                      "1G,",
                                      ",1G",
                                      "513G",
                                      "1G 2G",
                                      "99999999999999999999999999999999999999999999",
                                      "2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M,2M"};
    uint64_t totals[EMU_MAX_DEVICES];
    unsigned n = 77;

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char error[EMU_ERROR_MAX] = "";

        if (config_parse_sizes(bad[i], totals, &n, error) != -EINVAL || !*error)
            test_fail(__FILE__, __LINE__, "\"%s\" is taken", bad[i]);
    }
    check_eq(n, 77);
}

static unsigned visible(const char *text, unsigned *devices)
{
    CUuuid uuids[4];

    for (unsigned i = 0; i < 4; i++)
        uuids[i] = config_uuid("/dev/shm/x", i);
    return config_parse_visible(text, uuids, 4, devices);
}

TEST(visible_by_ordinal)
{
    unsigned devices[EMU_MAX_DEVICES];

    check_eq(visible("2,0", devices), 2);
    check_eq(devices[0], 2);
    check_eq(devices[1], 0);
    check_eq(visible("", devices), 0);
    check_eq(visible("-1", devices), 0);
    check_eq(visible("1,9,0", devices), 1);
    check_eq(devices[0], 1);
    check_eq(visible("1,1", devices), 0);
}

TEST(visible_by_name)
{
    unsigned devices[EMU_MAX_DEVICES];
    char name[CUDA_UUID_MAX], two[2 * CUDA_UUID_MAX];
    CUuuid uuid = config_uuid("/dev/shm/x", 3);

    cuda_uuid_format(name, &uuid);
    check_eq(visible(name, devices), 1);
    check_eq(devices[0], 3);
    strcpy(two, name);
    strcat(two, ",1");
    check_eq(visible(two, devices), 2);
    check_eq(devices[1], 1);
    name[16] = '\0';
    check_eq(visible(name, devices), 1);
    check_eq(visible("GPU-", devices), 0);
    check_eq(visible("GPU-no", devices), 0);
}

TEST(uuids_differ_and_stay)
{
    CUuuid a = config_uuid("/dev/shm/x", 0), again = config_uuid("/dev/shm/x", 0),
           b = config_uuid("/dev/shm/x", 1), c = config_uuid("/dev/shm/y", 0);

    check(memcmp(&a, &again, sizeof(a)) == 0);
    check(memcmp(&a, &b, sizeof(a)) != 0);
    check(memcmp(&a, &c, sizeof(a)) != 0);
}
