/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Which keys there are, where each is kept, and what it accepts. Whoever adds one adds a line to a table
 * here, and says in docs/man/kvcachedd.conf.5.scd and docs/examples/kvcachedd.conf what it means.
 */

#include "config_keys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "http_address.h"
#include "log.h"

#define PPM_ONE 1000000u

int config_parse_fraction(const char *text, uint64_t *ret_ppm)
{
    double fraction;

    if (parse_decimal(text, &fraction) < 0 || fraction > 1 || fraction * PPM_ONE < 1)
        return -EINVAL;
    *ret_ppm = (uint64_t)(fraction * PPM_ONE + 0.5);
    return 0;
}

int config_parse_level(const char *text, uint64_t *ret_level)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = {
        {"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING}, {"notice", LOG_LEVEL_NOTICE},
        {"info", LOG_LEVEL_INFO},   {"debug", LOG_LEVEL_DEBUG},
    };

    for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
        if (strcmp(text, levels[i].name) == 0) {
            *ret_level = levels[i].level;
            return 0;
        }
    }
    return -EINVAL;
}

static int read_string(const char *value, void *field)
{
    char **string = field;

    *string = strdup(value);
    return *string ? 0 : -ENOMEM;
}

static int read_name(const char *value, void *field)
{
    return *value ? read_string(value, field) : -EINVAL;
}

/* With "%i", "%u" and "%%" in it, and no other percent sign. */
static int read_path(const char *value, void *field)
{
    if (*value != '/')
        return -EINVAL;
    for (const char *sign = strchr(value, '%'); sign; sign = strchr(sign + 2, '%')) {
        if (sign[1] == '\0' || !strchr("iu%", sign[1]))
            return -EINVAL;
    }
    return read_string(value, field);
}

static int read_address(const char *value, void *field)
{
    struct http_address address;

    return http_address_parse(value, &address) < 0 ? -EINVAL : read_string(value, field);
}

static int read_size(const char *value, void *field)
{
    uint64_t bytes;

    if (parse_size(value, &bytes) < 0 || bytes == CONFIG_UNSET)
        return -EINVAL;
    *(uint64_t *)field = bytes;
    return 0;
}

static int read_positive_size(const char *value, void *field)
{
    return strspn(value, "0") == strlen(value) ? -EINVAL : read_size(value, field);
}

static int read_count(const char *value, void *field)
{
    uint64_t count;

    if (parse_u64(value, &count) < 0 || count == 0 || count > UINT32_MAX)
        return -EINVAL;
    *(uint64_t *)field = count;
    return 0;
}

static int read_fraction(const char *value, void *field)
{
    return config_parse_fraction(value, field);
}

static int read_level(const char *value, void *field)
{
    return config_parse_level(value, field);
}

static int read_seconds(const char *value, void *field)
{
    double seconds;

    if (parse_decimal(value, &seconds) < 0 || seconds > 86400)
        return -EINVAL;
    *(uint64_t *)field = (uint64_t)(seconds * 1e9);
    return 0;
}

static int read_mode(const char *value, void *field)
{
    uint64_t mode = 0;

    if (strlen(value) < 3 || strlen(value) > 4 || value[strspn(value, "01234567")])
        return -EINVAL;
    for (; *value; value++)
        mode = mode * 8 + (uint64_t)(*value - '0');
    if (mode & ~(uint64_t)0666)
        return -EINVAL;
    *(uint64_t *)field = mode;
    return 0;
}

/* "8G" or "25%" */
static int read_limit(const char *value, void *field)
{
    struct config_limit *limit = field;
    size_t length = strlen(value);
    char digits[32];
    double percent;

    if (length == 0 || value[length - 1] != '%')
        return read_size(value, &limit->bytes);
    if (length > sizeof(digits))
        return -EINVAL;
    memcpy(digits, value, length - 1);
    digits[length - 1] = '\0';
    if (parse_decimal(digits, &percent) < 0 || percent > 100)
        return -EINVAL;
    limit->ppm = (uint32_t)(percent * PPM_ONE / 100 + 0.5);
    return 0;
}

#define A_PATH "an absolute path, where %i is the GPU's number, %u its UUID, %% a percent sign"
#define A_SIZE "a size such as 512M or 40G"
#define A_GROUP "the name or number of a group"

static const struct config_key daemon_keys[] = {
    {"socket", read_path, offsetof(struct config, socket), A_PATH},
    {"socket-group", read_name, offsetof(struct config, socket_group), A_GROUP},
    {"admin-group", read_name, offsetof(struct config, admin_group), A_GROUP},
    {"state-dir", read_path, offsetof(struct config, state_dir), A_PATH},
    {"budget", read_positive_size, offsetof(struct config, budget_bytes), A_SIZE},
    {"utilization", read_fraction, offsetof(struct config, utilization_ppm),
     "a fraction above 0 and at most 1"},
    {"headroom", read_size, offsetof(struct config, headroom_bytes), A_SIZE},
    {"reserve", read_size, offsetof(struct config, reserve_bytes), A_SIZE},
    {"warm", read_count, offsetof(struct config, warm_extents), "a number of extents"},
    {"idle", read_seconds, offsetof(struct config, idle_ns), "seconds, at most 86400"},
    {"metrics-listen", read_address, offsetof(struct config, metrics_listen), HTTP_ADDRESS_ACCEPTS},
    {"log-level", read_level, offsetof(struct config, log_level), "error, warning, notice, info or debug"},
};

static const struct config_key domain_keys[] = {
    {"socket", read_path, offsetof(struct config_domain, socket), A_PATH},
    {"group", read_name, offsetof(struct config_domain, group), A_GROUP},
    {"mode", read_mode, offsetof(struct config_domain, mode), "an octal mode such as 0660"},
};

static const struct config_key instance_keys[] = {
    {"limit", read_limit, 0, "a size such as 8G or a percentage such as 25%"},
};

const struct config_keys config_daemon_keys = {daemon_keys, ARRAY_SIZE(daemon_keys)};
const struct config_keys config_domain_keys = {domain_keys, ARRAY_SIZE(domain_keys)};
const struct config_keys config_instance_keys = {instance_keys, ARRAY_SIZE(instance_keys)};

const struct config_key *config_key_find(const struct config_keys *keys, const char *name)
{
    for (size_t i = 0; i < keys->n; i++) {
        if (strcmp(keys->all[i].name, name) == 0)
            return &keys->all[i];
    }
    return NULL;
}

void config_keys_list(const struct config_keys *keys, char *buf, size_t size)
{
    size_t used = 0;

    for (size_t i = 0; i < keys->n && used < size; i++)
        used += (size_t)snprintf(buf + used, size - used, "%s%s", i ? ", " : "", keys->all[i].name);
}

static bool is_text(const struct config_key *key)
{
    return key->read == read_name || key->read == read_path || key->read == read_address;
}

/* Fields of one type only are told apart by their unset value: a string's NULL, a number's CONFIG_UNSET. */
bool config_key_is_given(const struct config_key *key, const void *field)
{
    const struct config_limit *limit = field;

    if (key->read == read_limit)
        return limit->bytes != CONFIG_UNSET || limit->ppm != CONFIG_PPM_UNSET;
    if (is_text(key))
        return *(char *const *)field != NULL;
    return *(const uint64_t *)field != CONFIG_UNSET;
}

/* ---- One GPU ---- */

static void take_over(struct config *config, struct config *from)
{
    for (size_t i = 0; i < ARRAY_SIZE(daemon_keys); i++) {
        const struct config_key *key = &daemon_keys[i];
        void *to = (char *)config + key->offset, *field = (char *)from + key->offset;

        if (!config_key_is_given(key, field))
            continue;
        if (is_text(key)) {
            free(*(char **)to);
            *(char **)to = steal_pointer(*(char **)field);
        } else {
            *(uint64_t *)to = *(uint64_t *)field;
        }
    }
}

/* Fills in what stands for the GPU. */
static int expand(char **path, unsigned index, const char *uuid)
{
    _cleanup_free_ char *from = *path;
    size_t n = 0, size;
    char *to;

    if (!from || !strchr(from, '%'))
        return (*path = steal_pointer(from)), 0;
    for (const char *c = from; *c; c++)
        n += *c == '%';
    size = strlen(from) + n * u64_max(strlen(uuid), sizeof("65535")) + 1;
    *path = to = calloc(1, size);
    if (!to)
        return -ENOMEM;
    for (const char *c = from; *c; c++) {
        if (*c != '%')
            *to++ = *c;
        else if (*++c == 'i')
            to += sprintf(to, "%u", index);
        else if (*c == 'u')
            to = stpcpy(to, uuid);
        else
            *to++ = *c;
    }
    return 0;
}

int config_for_gpu(struct config *config, unsigned index, const char *uuid)
{
    int r;

    for (size_t i = 0; i < config->n_gpus; i++) {
        if (config->gpus[i].index == index)
            take_over(config, config->gpus[i].settings);
    }
    for (size_t i = 0; i < config->n_gpus; i++) {
        if (*config->gpus[i].uuid && config_uuids_match(config->gpus[i].uuid, uuid))
            take_over(config, config->gpus[i].settings);
    }
    r = expand(&config->socket, index, uuid);
    if (r == 0)
        r = expand(&config->state_dir, index, uuid);
    for (size_t i = 0; i < config->n_domains && r == 0; i++)
        r = expand(&config->domains[i].socket, index, uuid);
    return r;
}
