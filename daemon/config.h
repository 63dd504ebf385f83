/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Config: the daemon's configuration file, as text, to a struct. Pure: whoever calls reads the file, and the
 * command line is laid over the result (options.h).
 *
 *     [daemon]                 settings of the whole daemon; see config.c for the keys
 *     [gpu N] or [gpu UUID]    the same keys, for the daemon of that GPU only
 *     [domain NAME]            a trust domain with a socket of its own: socket=PATH group=NAME mode=OCTAL
 *     [instance PATTERN]       limit=SIZE or limit=PERCENT%
 *
 * PATTERN is a shell pattern for instance names; "DOMAIN/PATTERN" keeps it to the domains that the part
 * before the last slash matches. The first section of the file that matches an instance decides its limit.
 *
 * One file serves the daemons of all GPUs. Which GPU a daemon's is turns out only when the driver is open, so
 * parsing keeps what is said of each, and config_for_gpu() makes of it what one daemon goes by.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

#define CONFIG_ERROR_MAX 1024
#define CONFIG_UNSET UINT64_MAX
#define CONFIG_PPM_UNSET UINT32_MAX
#define CONFIG_UUID_MAX 48
#define CONFIG_DOMAINS_MAX 64
#define CONFIG_DOMAIN_NAME_MAX 64

struct config_domain {
    char *name;
    char *socket;
    char *group;   /* of the socket; NULL: as [daemon] says */
    uint64_t mode; /* of the socket; CONFIG_UNSET: as the main one */
    unsigned line; /* where the file has it */
};

/* A limit as people give it: bytes, or a part of the device. */
struct config_limit {
    char *pattern;
    uint64_t bytes; /* CONFIG_UNSET where ppm is meant */
    uint32_t ppm;   /* millionths of the device's total */
    unsigned line;  /* where the file has it */
};

/* What holds for one GPU only. */
struct config_gpu {
    uint64_t index;             /* in PCI order; CONFIG_UNSET where the UUID is meant */
    char uuid[CONFIG_UUID_MAX]; /* "" where the number is meant */
    struct config *settings;    /* the fields that have keys in [daemon], and no others */
};

/* Numbers are CONFIG_UNSET and strings NULL where nothing was said. */
struct config {
    char *socket;
    char *state_dir;
    char *socket_group;
    char *admin_group;
    char *metrics_listen; /* http_address.h */
    uint64_t budget_bytes;
    uint64_t utilization_ppm;
    uint64_t headroom_bytes;
    uint64_t reserve_bytes;
    uint64_t warm_extents;
    uint64_t idle_ns;
    uint64_t log_level; /* LOG_LEVEL_* */
    size_t n_domains;
    struct config_domain *domains;
    size_t n_limits;
    struct config_limit *limits;
    size_t n_gpus;
    struct config_gpu *gpus;
};

/* Reads the text of a file called `file`. 0, -EINVAL with one sentence in `error` that begins with
 * "file:line:", or -ENOMEM. */
int config_parse(const char *text, const char *file, struct config **ret,
                 char error[static CONFIG_ERROR_MAX]);
struct config *config_free(struct config *config);
DEFINE_CLEANUP(struct config *, config_free);

/* Makes it the configuration of one GPU: lays the section with its number over [daemon], then the one with
 * its UUID, and puts number and UUID into paths. Once. 0 or -ENOMEM. */
int config_for_gpu(struct config *config, unsigned index, const char *uuid);

/* Whether both name the same device, as whole or as instance, whatever the case of the letters. */
bool config_uuids_match(const char *a, const char *b);

/* Single values in the forms that the file and the command line share. 0 or -EINVAL. */
int config_parse_fraction(const char *text, uint64_t *ret_ppm); /* "0.95": above 0, at most 1 */
int config_parse_level(const char *text, uint64_t *ret_level);  /* "error" to "debug" */

/* Whether the two differ in what takes effect only at start: sockets, folders, warm extents. */
bool config_needs_restart(const struct config *before, const struct config *after);

/* The limit that the file gives to an instance of a device with so many bytes; UINT64_MAX: none. */
uint64_t config_limit(const struct config *config, const char *domain, const char *instance,
                      uint64_t total_bytes);

/* A part of `total_bytes` in millionths, rounded down. */
uint64_t config_part(uint64_t total_bytes, uint32_t ppm);
