/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The management library: the same devices, seen from outside. It joins the folder as a member of its own, so
 * it works in a process that has no driver loaded, and it sees all devices whatever CUDA_VISIBLE_DEVICES
 * says.
 */

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "config.h"
#include "cuda/driver.h"
#include "cuda/emulator.h"
#include "faults.h"
#include "place.h"
#include "registry.h"

#define EXPORT __attribute__((visibility("default")))

const char *nvmlErrorString(nvmlReturn_t result);
#define NVML_FUNCTION(name, symbol, parameters) nvmlReturn_t symbol parameters;
#include "cuda/nvml.def"
#undef NVML_FUNCTION

enum call_id {
#define NVML_FUNCTION(name, symbol, parameters) CALL_##symbol,
#include "cuda/nvml.def"
#undef NVML_FUNCTION
    CALL_N,
};

static const char *const names[CALL_N] = {
#define NVML_FUNCTION(name, symbol, parameters) [CALL_##symbol] = #name,
#include "cuda/nvml.def"
#undef NVML_FUNCTION
};

static struct {
    pthread_mutex_t lock;
    struct registry *registry;
    unsigned inits;
    struct place place;
    bool faults_read, faults_bad;
    struct fault_plan faults;
    uint64_t counts[CALL_N], count_overall;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void read_faults(void)
{
    const char *text = getenv("KVCACHED_EMULATE_FAULTS");
    unsigned offset;

    if (state.faults_read)
        return;
    state.faults_read = true;
    state.faults_bad = text && faults_parse(text, &state.faults, &offset) < 0;
}

static nvmlReturn_t call_enter(enum call_id call, bool needs_init)
{
    nvmlReturn_t result;

    if (place_is_forked(&state.place))
        return NVML_ERROR_UNINITIALIZED;
    pthread_mutex_lock(&state.lock);
    read_faults();
    result =
        (nvmlReturn_t)faults_check(&state.faults, names[call], ++state.counts[call], ++state.count_overall);
    if (result == NVML_SUCCESS && needs_init && state.inits == 0)
        result = NVML_ERROR_UNINITIALIZED;
    if (result != NVML_SUCCESS)
        pthread_mutex_unlock(&state.lock);
    return result;
}

static nvmlReturn_t call_leave(nvmlReturn_t result)
{
    pthread_mutex_unlock(&state.lock);
    return result;
}

#define CALL(symbol, needs_init, expression)                                                                 \
    ({                                                                                                       \
        nvmlReturn_t call_result = call_enter(CALL_##symbol, needs_init);                                    \
                                                                                                             \
        call_result == NVML_SUCCESS ? call_leave(expression) : call_result;                                  \
    })

/* A handle is the device's number and one. */
static nvmlDevice_t handle_of(unsigned device)
{
    return (nvmlDevice_t)(uintptr_t)(device + 1);
}

static int device_of(nvmlDevice_t handle, unsigned *ret_device)
{
    uintptr_t number = (uintptr_t)handle;

    if (number == 0 || number > registry_n_devices(state.registry))
        return -EINVAL;
    *ret_device = (unsigned)number - 1;
    return 0;
}

EXPORT int nvemuConfigure(const char *folder, const char *sizes, char *error, size_t error_size)
{
    char sentence[EMU_ERROR_MAX] = "Emulated devices: this process already uses others";
    int r = 0;

    if (place_is_forked(&state.place))
        return -ECHILD;
    pthread_mutex_lock(&state.lock);
    if (!state.registry) {
        place_set(&state.place, folder, sizes);
        r = place_join(&state.place, &state.registry, sentence);
        if (r < 0)
            place_set(&state.place, NULL, NULL);
    } else if (!place_matches(state.registry, folder, sizes)) {
        r = -EBUSY;
    }
    pthread_mutex_unlock(&state.lock);
    if (r < 0)
        snprintf(error, error_size, "%s", sentence);
    return r;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS:
        return "The operation was successful";
    case NVML_ERROR_UNINITIALIZED:
        return "Not initialised";
    case NVML_ERROR_INVALID_ARGUMENT:
        return "Invalid argument";
    case NVML_ERROR_NOT_SUPPORTED:
        return "Not supported";
    case NVML_ERROR_NOT_FOUND:
        return "Not found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
        return "Insufficient size";
    case NVML_ERROR_OPERATING_SYSTEM:
        return "The operating system refused a call";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
        return "The version of an argument is unknown";
    default:
        return "Unknown error";
    }
}

static nvmlReturn_t init(void)
{
    char error[EMU_ERROR_MAX];

    if (state.faults_bad) {
        fputs("cuemu: KVCACHED_EMULATE_FAULTS: not a list of fault rules\n", stderr);
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!state.registry && place_join(&state.place, &state.registry, error) < 0) {
        fprintf(stderr, "cuemu: %s\n", error);
        return NVML_ERROR_OPERATING_SYSTEM;
    }
    state.inits++;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return CALL(nvmlInit_v2, false, init());
}

static nvmlReturn_t shut_down(void)
{
    if (--state.inits == 0)
        state.registry = registry_leave(state.registry);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    return CALL(nvmlShutdown, true, shut_down());
}

static nvmlReturn_t put_text(char *to, unsigned length, const char *text)
{
    if (!to)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, text);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    return CALL(nvmlSystemGetDriverVersion, true, put_text(version, length, "580.00 (emulated)"));
}

static nvmlReturn_t get_count(unsigned *count)
{
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = registry_n_devices(state.registry);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    return CALL(nvmlDeviceGetCount_v2, true, get_count(count));
}

static nvmlReturn_t get_by_index(unsigned index, nvmlDevice_t *device)
{
    if (!device || index >= registry_n_devices(state.registry))
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = handle_of(index);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    return CALL(nvmlDeviceGetHandleByIndex_v2, true, get_by_index(index, device));
}

static const char *uuid_text(char buf[static CUDA_UUID_MAX], unsigned device)
{
    CUuuid uuid = config_uuid(registry_path(state.registry), device);

    return cuda_uuid_format(buf, &uuid);
}

static nvmlReturn_t get_by_uuid(const char *uuid, nvmlDevice_t *device)
{
    char own[CUDA_UUID_MAX];

    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < registry_n_devices(state.registry); i++)
        if (strcasecmp(uuid_text(own, i), uuid) == 0) {
            *device = handle_of(i);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return CALL(nvmlDeviceGetHandleByUUID, true, get_by_uuid(uuid, device));
}

static nvmlReturn_t get_by_pci_id(const char *id, nvmlDevice_t *device)
{
    unsigned domain = 0, bus, slot, function = 0;

    if (!id || !device || sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < registry_n_devices(state.registry); i++)
        if (domain == 0 && bus == CONFIG_PCI_BUS(i) && slot == 0 && function == 0) {
            *device = handle_of(i);
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device)
{
    return CALL(nvmlDeviceGetHandleByPciBusId_v2, true, get_by_pci_id(id, device));
}

static nvmlReturn_t get_uuid(nvmlDevice_t handle, char *uuid, unsigned length)
{
    char own[CUDA_UUID_MAX];
    unsigned device;

    if (device_of(handle, &device) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    return put_text(uuid, length, uuid_text(own, device));
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    return CALL(nvmlDeviceGetUUID, true, get_uuid(device, uuid, length));
}

static nvmlReturn_t get_name(nvmlDevice_t handle, char *name, unsigned length)
{
    unsigned device;
    char own[64];

    if (device_of(handle, &device) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(own, sizeof(own), CONFIG_NAME, (unsigned)(registry_total(state.registry, device) / GIB));
    return put_text(name, length, own);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    return CALL(nvmlDeviceGetName, true, get_name(device, name, length));
}

static nvmlReturn_t get_pci_info(nvmlDevice_t handle, nvmlPciInfo_t *pci)
{
    unsigned device;

    if (!pci || device_of(handle, &device) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *pci = (nvmlPciInfo_t){.bus = CONFIG_PCI_BUS(device)};
    snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "0000:%02X:00.0", pci->bus & 0xff);
    snprintf(pci->busId, sizeof(pci->busId), "00000000:%02X:00.0", pci->bus & 0xff);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    return CALL(nvmlDeviceGetPciInfo_v3, true, get_pci_info(device, pci));
}

static nvmlReturn_t get_memory(nvmlDevice_t handle, nvmlMemory_t *memory)
{
    unsigned device;

    if (!memory || device_of(handle, &device) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    registry_sweep(state.registry);
    memory->total = registry_total(state.registry, device);
    memory->used = registry_used(state.registry, device);
    memory->free = u64_sub_floor(memory->total, memory->used);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    return CALL(nvmlDeviceGetMemoryInfo, true, get_memory(device, memory));
}

static nvmlReturn_t get_memory_v2(nvmlDevice_t handle, nvmlMemory_v2_t *memory)
{
    nvmlReturn_t result;
    nvmlMemory_t plain;

    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    result = get_memory(handle, &plain);
    if (result != NVML_SUCCESS)
        return result;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->free = plain.free;
    memory->used = plain.used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    return CALL(nvmlDeviceGetMemoryInfo_v2, true, get_memory_v2(device, memory));
}

static nvmlReturn_t get_processes(nvmlDevice_t handle, unsigned *count, nvmlProcessInfo_t *infos)
{
    _cleanup_free_ struct registry_process *processes = calloc(EMU_MAX_SLOTS, sizeof(*processes));
    unsigned device, n;
    bool fits;

    if (!count || (*count > 0 && !infos) || device_of(handle, &device) < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!processes)
        return NVML_ERROR_MEMORY;
    registry_sweep(state.registry);
    n = registry_processes(state.registry, device, processes, EMU_MAX_SLOTS);
    fits = n <= *count;
    for (unsigned i = 0; fits && i < n; i++)
        infos[i] =
            (nvmlProcessInfo_t){(unsigned)processes[i].pid, processes[i].bytes, UINT32_MAX, UINT32_MAX};
    *count = n;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                            nvmlProcessInfo_t *processes)
{
    return CALL(nvmlDeviceGetComputeRunningProcesses_v3, true, get_processes(device, count, processes));
}

__attribute__((destructor)) static void on_unload(void)
{
    if (!place_has_joined(&state.place) || place_is_forked(&state.place))
        return;
    pthread_mutex_lock(&state.lock);
    state.registry = registry_leave(state.registry);
    state.inits = 0;
    pthread_mutex_unlock(&state.lock);
}
