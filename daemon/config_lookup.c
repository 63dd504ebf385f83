/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What is looked up in a configuration: which limit it gives to an instance, and whether two of them differ
 * in what takes effect only at start. How it is read from a file is in config.c.
 */

#include <fnmatch.h>
#include <string.h>
#include <strings.h>

#include "config.h"

#define PPM_ONE 1000000u

uint64_t config_part(uint64_t total_bytes, uint32_t ppm)
{
    return total_bytes / PPM_ONE * ppm + total_bytes % PPM_ONE * ppm / PPM_ONE;
}

bool config_uuids_match(const char *a, const char *b)
{
    return strlen(a) >= 4 && strlen(b) >= 4 ? strcasecmp(a + 4, b + 4) == 0 : *a == *b;
}

static bool strings_differ(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) != 0 : a != b;
}

static bool domains_differ(const struct config_domain *a, const struct config_domain *b)
{
    return strings_differ(a->name, b->name) || strings_differ(a->socket, b->socket) ||
           strings_differ(a->group, b->group) || a->mode != b->mode;
}

bool config_needs_restart(const struct config *before, const struct config *after)
{
    if (strings_differ(before->socket, after->socket) ||
        strings_differ(before->state_dir, after->state_dir) ||
        strings_differ(before->socket_group, after->socket_group) ||
        strings_differ(before->metrics_listen, after->metrics_listen) ||
        before->warm_extents != after->warm_extents || before->n_domains != after->n_domains)
        return true;
    for (size_t i = 0; i < before->n_domains; i++) {
        if (domains_differ(&before->domains[i], &after->domains[i]))
            return true;
    }
    return false;
}

static bool limit_matches(const struct config_limit *limit, const char *domain, const char *instance)
{
    const char *slash = strrchr(limit->pattern, '/');
    char domain_pattern[256];

    if (!slash)
        return fnmatch(limit->pattern, instance, 0) == 0;
    if ((size_t)(slash - limit->pattern) >= sizeof(domain_pattern))
        return false;
    memcpy(domain_pattern, limit->pattern, (size_t)(slash - limit->pattern));
    domain_pattern[slash - limit->pattern] = '\0';
    return fnmatch(domain_pattern, domain, 0) == 0 && fnmatch(slash + 1, instance, 0) == 0;
}

uint64_t config_limit(const struct config *config, const char *domain, const char *instance,
                      uint64_t total_bytes)
{
    for (size_t i = 0; i < config->n_limits; i++) {
        const struct config_limit *limit = &config->limits[i];

        if (limit_matches(limit, domain, instance))
            return limit->bytes != CONFIG_UNSET ? limit->bytes : config_part(total_bytes, limit->ppm);
    }
    return UINT64_MAX;
}
