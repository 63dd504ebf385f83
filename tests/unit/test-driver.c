/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

static void expect_load_error(const char *path, int want, const char *mentions)
{
    struct cuda_driver *driver = (struct cuda_driver *)1;
    char error[CUDA_DRIVER_ERROR_MAX] = "";
    int r = cuda_driver_load(path, &driver, error);

    check_eq(r, want);
    check(driver == (struct cuda_driver *)1);
    if (!strstr(error, mentions) || strchr(error, '\n'))
        test_fail(__FILE__, __LINE__, "\"%s\" does not mention \"%s\" in one line", error, mentions);
}

TEST(missing_library)
{
    struct nvml_driver *nvml;
    char error[CUDA_DRIVER_ERROR_MAX] = "";

    expect_load_error("/nonexistent/libcuda.so.1", -ENOENT, "/nonexistent/libcuda.so.1");
    check_eq(nvml_driver_load("/nonexistent/libnvidia-ml.so.1", &nvml, error), -ENOENT);
    check(strstr(error, "libnvidia-ml"));
}

TEST(library_of_something_else)
{
    expect_load_error("libm.so.6", -ENOSYS, "cuInit");
}

/* The toolkit's stub lies in a folder of that name, and says so when asked to start. */
TEST(stub_by_place)
{
    char folder[] = "/tmp/kvc-driver-XXXXXX", stubs[64], path[96];

    check(mkdtemp(folder));
    snprintf(stubs, sizeof(stubs), "%s/stubs", folder);
    snprintf(path, sizeof(path), "%s/libcuda.so.1", stubs);
    check_eq(mkdir(stubs, 0755), 0);
    check_eq(symlink(STUB_LIBRARY, path), 0);
    expect_load_error(path, -ELIBACC, "stub");
    unlink(path);
    rmdir(stubs);
    rmdir(folder);
}

TEST(stub_by_what_it_says)
{
    expect_load_error(STUB_LIBRARY, -ELIBACC, "stub");
}

TEST(unload_accepts_null)
{
    check(cuda_driver_unload(NULL) == NULL);
    check(nvml_driver_unload(NULL) == NULL);
}

TEST(uuid_text)
{
    static const char text[] = "GPU-8a6e0b7c-0012-34ff-a1b2-c3d4e5f60718";
    char buf[CUDA_UUID_MAX];
    CUuuid uuid;

    check_eq(cuda_uuid_parse(text, &uuid), 0);
    check_str(cuda_uuid_format(buf, &uuid), text);
    check_eq(cuda_uuid_parse("MIG-8A6E0B7C-0012-34FF-A1B2-C3D4E5F60718", &uuid), 0);
    check_str(cuda_uuid_format(buf, &uuid), text);
}

TEST(uuid_garbage)
{
    static const char *const garbage[] = {
        "",
        "0",
        "GPU-",
        "8a6e0b7c-0012-34ff-a1b2-c3d4e5f60718",
        "GPU-8a6e0b7c001234ffa1b2c3d4e5f60718",
        "GPU-8a6e0b7c-0012-34ff-a1b2-c3d4e5f6071",
        "GPU-8a6e0b7c-0012-34ff-a1b2-c3d4e5f607180",
        "GPU-8a6e0b7c-0012-34ff-a1b2-c3d4e5f6071g",
        "GPU-8a6e0b7c-0012-34ff-a1b2_c3d4e5f60718",
    };
    CUuuid uuid, untouched;

    memset(&uuid, 7, sizeof(uuid));
    untouched = uuid;
    for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++)
        if (cuda_uuid_parse(garbage[i], &uuid) != -EINVAL)
            test_fail(__FILE__, __LINE__, "\"%s\" is taken", garbage[i]);
    check(memcmp(&uuid, &untouched, sizeof(uuid)) == 0);
}

/* A driver with devices at these PCI buses. */
static const int buses[] = {0x41, 0x03, 0xc1};

static CUresult fake_count(int *count)
{
    *count = 3;
    return CUDA_SUCCESS;
}

static CUresult fake_get(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return CUDA_SUCCESS;
}

static CUresult fake_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    *value = attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID ? buses[device] : 0;
    return CUDA_SUCCESS;
}

static CUresult fake_uuid(CUuuid *uuid, CUdevice device)
{
    memset(uuid, device + 1, sizeof(*uuid));
    return CUDA_SUCCESS;
}

static CUresult broken_count(int *count)
{
    return CUDA_ERROR_UNKNOWN;
}

TEST(devices_in_pci_order)
{
    struct cuda_driver driver = {.cuDeviceGetCount = fake_count,
                                 .cuDeviceGet = fake_get,
                                 .cuDeviceGetAttribute = fake_attribute,
                                 .cuDeviceGetUuid = fake_uuid};
    CUdevice device = -1;
    CUuuid uuid;

    check_eq(cuda_device_by_index(&driver, 0, &device), 0);
    check_eq(device, 1);
    check_eq(cuda_device_by_index(&driver, 1, &device), 0);
    check_eq(device, 0);
    check_eq(cuda_device_by_index(&driver, 2, &device), 0);
    check_eq(device, 2);
    check_eq(cuda_device_by_index(&driver, 3, &device), -ENODEV);
    memset(&uuid, 3, sizeof(uuid));
    check_eq(cuda_device_by_uuid(&driver, &uuid, &device), 0);
    check_eq(device, 2);
    memset(&uuid, 9, sizeof(uuid));
    check_eq(cuda_device_by_uuid(&driver, &uuid, &device), -ENODEV);
    driver.cuDeviceGetCount = broken_count;
    check_eq(cuda_device_by_index(&driver, 0, &device), -EIO);
    check_eq(cuda_device_by_uuid(&driver, &uuid, &device), -EIO);
}
