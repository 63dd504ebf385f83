/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Finding the driver at run time. Nothing here is linked against a vendor's library, so one binary serves
 * machines with and without a GPU.
 *
 * The toolkit ships a "stub" libcuda.so.1 for link editors, and careless search paths find it first. It has
 * every symbol and fails in every call, so it is recognised twice: by its folder's name, and by what cuInit
 * says.
 *
 * A table is complete or there is none: a caller never tests a pointer.
 */

#include "cuda/driver.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "cuda/emulator.h"

struct entry_point {
    const char *symbol;
    size_t offset;
};

static const struct entry_point cuda_entry_points[] = {
#define CUDA_FUNCTION(name, symbol, parameters) {#symbol, offsetof(struct cuda_driver, name)},
#include "cuda/driver.def"
#undef CUDA_FUNCTION
};

static const struct entry_point nvml_entry_points[] = {
    {"nvmlErrorString", offsetof(struct nvml_driver, nvmlErrorString)},
#define NVML_FUNCTION(name, symbol, parameters) {#symbol, offsetof(struct nvml_driver, name)},
#include "cuda/nvml.def"
#undef NVML_FUNCTION
};

__attribute__((format(printf, 3, 4))) static int fail(char *error, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, CUDA_DRIVER_ERROR_MAX, format, args);
    va_end(args);
    return r;
}

static bool is_stub(void *library)
{
    struct link_map *map;

    return dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && strstr(map->l_name, "/stubs/");
}

static int open_library(const char *path, void **ret_library, char *error)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library)
        return fail(error, -ENOENT, "Cannot load %s: %s", path, dlerror());
    if (is_stub(library)) {
        dlclose(library);
        return fail(error, -ELIBACC, "%s is the CUDA toolkit's stub; the driver's own library was not found",
                    path);
    }
    *ret_library = library;
    return 0;
}

static int fill_table(void *library, const char *path, const struct entry_point *entries, size_t n_entries,
                      void *table, char *error)
{
    for (size_t i = 0; i < n_entries; i++) {
        void *function = dlsym(library, entries[i].symbol);

        if (!function)
            return fail(error, -ENOSYS, "%s has no %s: the driver is too old", path, entries[i].symbol);
        memcpy((char *)table + entries[i].offset, &function, sizeof(function));
    }
    return 0;
}

const char *cuda_error_name(const struct cuda_driver *driver, CUresult result)
{
    const char *name;

    return driver->cuGetErrorName(result, &name) == CUDA_SUCCESS && name ? name : "an unknown CUDA error";
}

/* The one thing that keeps a driver that is there from starting with this error. */
static int fail_forked(char *error)
{
    return fail(error, -ECHILD,
                "CUDA does not survive a fork, and a parent of this process has used it: spawn the process");
}

static int start_cuda(const struct cuda_driver *driver, const char *path, char *error)
{
    CUresult result = driver->cuInit(0);

    switch (result) {
    case CUDA_SUCCESS:
        return 0;
    case CUDA_ERROR_STUB_LIBRARY:
        return fail(error, -ELIBACC, "%s is the CUDA toolkit's stub; the driver's own library was not found",
                    path);
    case CUDA_ERROR_NO_DEVICE:
        return fail(error, -ENODEV, "The CUDA driver (%s) sees no GPU", path);
    case CUDA_ERROR_NOT_INITIALIZED:
        return fail_forked(error);
    default:
        return fail(error, -EIO, "The CUDA driver (%s) does not start: %s", path,
                    cuda_error_name(driver, result));
    }
}

static int cuda_table_from(void *library, const char *path, struct cuda_driver **ret_driver, char *error)
{
    _cleanup_free_ struct cuda_driver *driver = calloc(1, sizeof(*driver));
    int r;

    if (!driver)
        return fail(error, -ENOMEM, "Out of memory");
    r = fill_table(library, path, cuda_entry_points, ARRAY_SIZE(cuda_entry_points), driver, error);
    if (r == 0)
        r = start_cuda(driver, path, error);
    if (r < 0)
        return r;
    *ret_driver = steal_pointer(driver);
    return 0;
}

static int start_nvml(const struct nvml_driver *driver, const char *path, char *error)
{
    nvmlReturn_t result = driver->nvmlInit();

    if (result != NVML_SUCCESS)
        return fail(error, -EIO, "%s does not start: %s", path, driver->nvmlErrorString(result));
    return 0;
}

static int nvml_table_from(void *library, const char *path, struct nvml_driver **ret_driver, char *error)
{
    _cleanup_free_ struct nvml_driver *driver = calloc(1, sizeof(*driver));
    int r;

    if (!driver)
        return fail(error, -ENOMEM, "Out of memory");
    r = fill_table(library, path, nvml_entry_points, ARRAY_SIZE(nvml_entry_points), driver, error);
    if (r == 0)
        r = start_nvml(driver, path, error);
    if (r < 0)
        return r;
    *ret_driver = steal_pointer(driver);
    return 0;
}

int cuda_driver_load(const char *path, struct cuda_driver **ret_driver,
                     char error[static CUDA_DRIVER_ERROR_MAX])
{
    void *library = NULL;
    int r;

    path = path ?: "libcuda.so.1";
    r = open_library(path, &library, error);
    return r < 0 ? r : cuda_table_from(library, path, ret_driver, error);
}

int nvml_driver_load(const char *path, struct nvml_driver **ret_driver,
                     char error[static CUDA_DRIVER_ERROR_MAX])
{
    void *library = NULL;
    int r;

    path = path ?: "libnvidia-ml.so.1";
    r = open_library(path, &library, error);
    return r < 0 ? r : nvml_table_from(library, path, ret_driver, error);
}

static int open_emulator(const char *dir, const char *file, const char *configure_symbol, const char *folder,
                         const char *sizes, char *path, void **ret_library, char *error)
{
    __typeof__(&cuemuConfigure) configure;
    void *library = NULL;
    int r;

    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", dir, file) >= PATH_MAX)
        return fail(error, -ENAMETOOLONG, "The emulator's folder has too long a name");
    r = open_library(path, &library, error);
    if (r < 0)
        return r;
    configure = (__typeof__(configure))dlsym(library, configure_symbol);
    if (!configure)
        return fail(error, -ENOSYS, "%s is not the emulated driver", path);
    r = configure(folder, sizes, error, CUDA_DRIVER_ERROR_MAX);
    if (r == -ECHILD)
        return fail_forked(error);
    if (r == 0)
        *ret_library = library;
    return r;
}

int cuda_driver_load_emulated(const char *emulator_dir, const char *folder, const char *sizes,
                              struct cuda_driver **ret_driver, char error[static CUDA_DRIVER_ERROR_MAX])
{
    char path[PATH_MAX];
    void *library = NULL;
    int r;

    r = open_emulator(emulator_dir, "libcuda.so.1", "cuemuConfigure", folder, sizes, path, &library, error);
    return r < 0 ? r : cuda_table_from(library, path, ret_driver, error);
}

int nvml_driver_load_emulated(const char *emulator_dir, const char *folder, const char *sizes,
                              struct nvml_driver **ret_driver, char error[static CUDA_DRIVER_ERROR_MAX])
{
    char path[PATH_MAX];
    void *library = NULL;
    int r;

    r = open_emulator(emulator_dir, "libnvidia-ml.so.1", "nvemuConfigure", folder, sizes, path, &library,
                      error);
    return r < 0 ? r : nvml_table_from(library, path, ret_driver, error);
}

struct cuda_driver *cuda_driver_unload(struct cuda_driver *driver)
{
    free(driver);
    return NULL;
}

struct nvml_driver *nvml_driver_unload(struct nvml_driver *driver)
{
    if (driver)
        driver->nvmlShutdown();
    free(driver);
    return NULL;
}

/* Where the dashes stand, in bytes from the front: 8-4-4-4-12 digits. */
static bool dash_before(size_t byte)
{
    return byte == 4 || byte == 6 || byte == 8 || byte == 10;
}

const char *cuda_uuid_format(char buf[static CUDA_UUID_MAX], const CUuuid *uuid)
{
    char *p = stpcpy(buf, "GPU-");

    for (size_t i = 0; i < sizeof(uuid->bytes); i++)
        p += sprintf(p, "%s%02x", dash_before(i) ? "-" : "", (unsigned char)uuid->bytes[i]);
    return buf;
}

static int hex_digit(char c)
{
    if (!isxdigit((unsigned char)c))
        return -EINVAL;
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

int cuda_uuid_parse(const char *text, CUuuid *ret_uuid)
{
    CUuuid uuid;

    if (strncmp(text, "GPU-", 4) != 0 && strncmp(text, "MIG-", 4) != 0)
        return -EINVAL;
    text += 4;
    for (size_t i = 0; i < sizeof(uuid.bytes); i++) {
        int high, low;

        if (dash_before(i) && *text++ != '-')
            return -EINVAL;
        high = hex_digit(text[0]);
        low = high < 0 ? high : hex_digit(text[1]);
        if (low < 0)
            return -EINVAL;
        uuid.bytes[i] = (char)(high << 4 | low);
        text += 2;
    }
    if (*text)
        return -EINVAL;
    *ret_uuid = uuid;
    return 0;
}

static int pci_address(const struct cuda_driver *driver, CUdevice device, uint64_t *ret_address)
{
    static const CUdevice_attribute parts[] = {
        CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID};
    uint64_t address = 0;

    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        int value;

        if (driver->cuDeviceGetAttribute(&value, parts[i], device) != CUDA_SUCCESS)
            return -EIO;
        address = address << 16 | (uint16_t)value;
    }
    *ret_address = address;
    return 0;
}

/* How many devices stand before this one; MIG instances of one GPU share an address and keep their order. */
static int pci_rank(const struct cuda_driver *driver, int n_devices, int ordinal, unsigned *ret_rank)
{
    uint64_t own, other;
    CUdevice device;
    unsigned rank = 0;

    if (driver->cuDeviceGet(&device, ordinal) != CUDA_SUCCESS || pci_address(driver, device, &own) < 0)
        return -EIO;
    for (int i = 0; i < n_devices; i++) {
        if (driver->cuDeviceGet(&device, i) != CUDA_SUCCESS || pci_address(driver, device, &other) < 0)
            return -EIO;
        rank += other < own || (other == own && i < ordinal);
    }
    *ret_rank = rank;
    return 0;
}

int cuda_device_by_index(const struct cuda_driver *driver, unsigned index, CUdevice *ret_device)
{
    CUdevice device;
    int n_devices;

    if (driver->cuDeviceGetCount(&n_devices) != CUDA_SUCCESS)
        return -EIO;
    for (int i = 0; i < n_devices; i++) {
        unsigned rank;
        int r = pci_rank(driver, n_devices, i, &rank);

        if (r < 0)
            return r;
        if (rank != index)
            continue;
        if (driver->cuDeviceGet(&device, i) != CUDA_SUCCESS)
            return -EIO;
        *ret_device = device;
        return 0;
    }
    return -ENODEV;
}

int cuda_device_by_uuid(const struct cuda_driver *driver, const CUuuid *uuid, CUdevice *ret_device)
{
    int n_devices;

    if (driver->cuDeviceGetCount(&n_devices) != CUDA_SUCCESS)
        return -EIO;
    for (int i = 0; i < n_devices; i++) {
        CUdevice device;
        CUuuid own;

        if (driver->cuDeviceGet(&device, i) != CUDA_SUCCESS ||
            driver->cuDeviceGetUuid(&own, device) != CUDA_SUCCESS)
            return -EIO;
        if (memcmp(&own, uuid, sizeof(own)) == 0) {
            *ret_device = device;
            return 0;
        }
    }
    return -ENODEV;
}
