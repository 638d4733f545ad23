/* What sets an instance up, as a library for the tests, which fork and look from inside. */
#include "launcher.h"

#include <errno.h>
#include <string.h>

struct init self;
struct text outgoing;
struct launcher launcher;

static struct failure told;

const char *told_text(void)
{
	return told.text;
}

const char *told_path(void)
{
	return told.path;
}

int told_number(void)
{
	return told.number;
}

/* What fails by errno alone. */
static int checked(int result)
{
	told = (struct failure){0};
	return result < 0 ? fail(&told, errno, NULL, NULL) : result;
}

int drive_open(int root, const char *path)
{
	return checked(target_open(root, path));
}

int drive_make(int root, const char *path, int directory)
{
	return checked(target_make(root, path, directory));
}

int drive_bind(const char *source, int root, const char *target, unsigned long flags, int recursive)
{
	told = (struct failure){0};
	return mount_bind(source, root, target, flags, recursive, &told);
}

int drive_attach(const char *source, int root, const char *target, const char *type,
		 unsigned long flags)
{
	told = (struct failure){0};
	return mount_new(source, root, target, type, flags, NULL, &told);
}

int drive_build(const char *new_root, char *steps, long shm_bytes)
{
	told = (struct failure){0};
	return rootfs_build(new_root, json_parse(steps, strlen(steps)), shm_bytes, &told);
}

int drive_finish(const char *new_root, int root, int own_network)
{
	told = (struct failure){0};
	return rootfs_finish(new_root, root, own_network, &told);
}

int drive_namespaces(long id_base, long id_count, int network, int held[MAX_HELD], pid_t *helper)
{
	told = (struct failure){0};
	return namespaces_create(id_base, id_count, network, held, helper, &told);
}

int drive_loopback(void)
{
	return checked(loopback_up());
}

int drive_allow(long id_base, long id_count)
{
	return checked(allow_unprivileged_network(id_base, id_count) ? -1 : 0);
}

int drive_join(const int held[MAX_HELD])
{
	return checked(namespaces_join(held));
}
