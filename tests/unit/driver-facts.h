/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Numbers that a compiler derives from a header: sizes, offsets and values, by the text that names them. */

struct fact {
    const char *name;
    long long value;
};

extern const struct fact facts_ours[], facts_vendor[], nvml_facts_ours[], nvml_facts_vendor[];
