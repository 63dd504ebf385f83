/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What kvtop knows: the last look at each GPU and its instances, and what follows from two looks. Pure: time
 * is an argument. What isn't known is marked so, and never a number.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "wire/codec.h"

#define TOP_HISTORY 32 /* looks that a sparkline shows at most */

/* A number that may not be known. */
struct top_number {
    bool known;
    uint64_t value;
};

struct top_instance {
    char *name, *domain; /* as the daemon has them: not clean */
    uint32_t gpu;
    uint64_t serial;
    uint64_t limit_bytes, held_bytes;              /* held: all that is charged */
    struct top_number prealloc_bytes;              /* cached, leased, reserved */
    struct top_number used_bytes;                  /* held, without prealloc */
    struct top_number granted, returned;           /* bytes since its record was made */
    struct top_number granted_rate, returned_rate; /* bytes in a second, between the last two looks */
    bool over_limit, frozen;
    bool marked;                   /* so that the eye finds it again; one at most */
    bool is_namesake;              /* another trust domain has one of this name */
    uint64_t history[TOP_HISTORY]; /* held_bytes, oldest first, without a gap */
    unsigned n_history;
};

struct top_gpu {
    uint32_t index;
    uint64_t life;        /* of its daemon: another one has another */
    bool lost;            /* of what stands below, no figure is known any more */
    char *reason;         /* of that; a sentence, or NULL */
    uint64_t total_bytes; /* 0: never seen */
    uint64_t free_bytes, seen_ns;
    struct top_instance *instances;
    size_t n_instances;
};

enum top_sort {
    TOP_SORT_USED, /* the largest first */
    TOP_SORT_NAME,
    TOP_SORT_SHARE, /* of the limit */
    TOP_SORT_RATE,  /* granted and returned; unknown last */
    _TOP_SORT_MAX,
};

struct top_model {
    struct top_gpu *gpus; /* by index */
    size_t n_gpus;
    enum top_sort sort;
    char filter[64]; /* a part of the name; empty: all */
};

void top_model_deinit(struct top_model *model);

/* What the daemon of a GPU has said at `now_ns`. `operations`: it knows what FEATURE_OPERATIONS added. 0 or
 * -ENOMEM: the look is lost then, nothing else. */
int top_model_look(struct top_model *model, uint64_t now_ns, const Kvcached__InfoReply *info,
                   Kvcached__InstanceInfo *const *instances, size_t n, bool operations);

/* Its daemon doesn't answer. 0 or -ENOMEM. */
int top_model_lose(struct top_model *model, uint32_t gpu, const char *reason);

/* Marks an instance of the model instead of another one, or takes its mark away. It lasts as long as the
 * record. */
void top_model_mark(struct top_model *model, const struct top_instance *instance);

/* Those of a GPU that pass the filter, sorted, into an array that has room for n_instances. How many. Of
 * one that is lost they are who was there last, by name. */
size_t top_model_view(const struct top_model *model, const struct top_gpu *gpu,
                      const struct top_instance **ret_instances);
