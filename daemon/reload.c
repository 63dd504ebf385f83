/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A file with an error changes nothing. One that is right takes effect at once, but for what the daemon has
 * opened at its start: sockets and folders.
 */

#include "reload.h"

#include <stdio.h>

#include "chronicle.h"
#include "notify.h"
#include "sockets.h"

#define DEFAULT_ADMIN_GROUP "kvcached-admin"
#define NEEDS_RESTART "Other sockets and addresses, folders and warm= need a restart of the daemon"

void reload_apply(struct server *server)
{
    const struct config *config = server->config;
    const char *group = config->admin_group;

    log_set_level(config->log_level != CONFIG_UNSET ? (enum log_level)config->log_level : LOG_LEVEL_NOTICE);
    server->admin_gid = (gid_t)-1;
    if (sockets_find_group(group ?: DEFAULT_ADMIN_GROUP, &server->admin_gid) < 0 && group)
        log_warning("There is no group %s; only root and the daemon's user may change limits", group);
}

static void take_effect(struct server *server, struct config *config)
{
    struct broker_instance *instance = NULL;

    config_free(server->config);
    server->config = config;
    reload_apply(server);
    settings_reload(&server->settings, config);
    broker_reconfigure(server->broker, &server->settings.broker, server_now());
    while ((instance = broker_instance_next(server->broker, instance)))
        server_set_config_limit(server, instance);
}

int reload(struct server *server, char sentence[static CONFIG_ERROR_MAX])
{
    const struct device_info *info = device_info(server->device);
    struct config *config = NULL;
    bool needs_restart = false;
    int r;

    notify_reloading();
    r = options_load_config(server->options, &config, sentence);
    if (r == 0)
        r = options_settle(server->options, info->index, info->uuid, config, sentence);
    server->counters.n_reloads++;
    server->counters.n_reloads_failed += r < 0;
    if (r < 0) {
        config_free(config);
        log_error("The old configuration stays: %s", sentence);
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_RELOAD_FAILED, NULL, 0, 0,
                       "The old configuration stays: %s", sentence);
    } else {
        needs_restart = config_needs_restart(server->config, config);
        if (needs_restart)
            log_warning("%s", NEEDS_RESTART);
        take_effect(server, config);
        chronicle_note(
            server, KVCACHED__EVENT_KIND__EVENT_RELOADED, NULL, 0, 0, "The configuration was read%s",
            needs_restart ? "; other sockets and addresses, folders and warm= need a restart" : "");
    }
    if (needs_restart)
        snprintf(sentence, CONFIG_ERROR_MAX, "%s", NEEDS_RESTART);
    server_say_ready(server);
    return r < 0 ? r : needs_restart;
}
