/*
 * Mounts beneath a root that is being built, named by descriptors.
 *
 * Targets are opened beneath the new root with openat2(2) and no symbolic link is followed, so an
 * image cannot lead a mount elsewhere (CVE-2021-30465, CVE-2025-31133).
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

bool may_set_attributes = true;

const char *fd_path(int fd, char path[FD_PATH])
{
	*digits(stpcpy(path, "/proc/self/fd/"), (uint64_t)fd, 1) = '\0';
	return path;
}

/* Return an O_PATH descriptor of absolute *path* beneath *root*, following no link, or -1. */
int target_open(int root, const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};

	path += strspn(path, "/");
	return (int)syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof(how));
}

static int make_one(int at, const char *name, bool directory)
{
	int made;

	if (directory) {
		made = mkdirat(at, name, 0755);
	} else {
		made = openat(at, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
		if (made >= 0)
			close(made);
	}
	return made < 0 && errno != EEXIST ? -1 : 0;
}

static int close_failed(int fd)
{
	int number = errno;

	close(fd);
	errno = number;
	return -1;
}

/* Return a descriptor of *path* beneath *root*, making what is missing on the way; or -1. */
int target_make(int root, const char *path, bool directory)
{
	int at = target_open(root, path);
	char name[NAME_MAX + 1];

	if (at >= 0 || errno != ENOENT)
		return at;
	at = fcntl(root, F_DUPFD_CLOEXEC, 0);
	while (at >= 0) {
		size_t length;
		int below;

		path += strspn(path, "/");
		length = strcspn(path, "/");
		if (!length)
			return at;
		if (length > NAME_MAX) {
			errno = ENAMETOOLONG;
			return close_failed(at);
		}
		*(char *)mempcpy(name, path, length) = '\0';
		path += length;
		if (make_one(at, name, directory || path[strspn(path, "/")]))
			return close_failed(at);
		below = target_open(at, name);
		close_failed(at);
		at = below;
	}
	return -1;
}

/* ---- flags of mounts ---- */

static const struct {
	const char *word; /* in mountinfo, for what a remount must keep */
	unsigned long flag;
	uint64_t attribute;
} options[] = {
	{"ro", MS_RDONLY, MOUNT_ATTR_RDONLY},	{"nosuid", MS_NOSUID, MOUNT_ATTR_NOSUID},
	{"nodev", MS_NODEV, MOUNT_ATTR_NODEV},	{"noexec", MS_NOEXEC, MOUNT_ATTR_NOEXEC},
	{"noatime", MS_NOATIME, 0},		{"nodiratime", MS_NODIRATIME, 0},
	{"relatime", MS_RELATIME, 0},
};

static int set_attributes(const char *path, unsigned long flags, bool recursive)
{
	struct mount_attr attributes = {0};

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		if (flags & options[i].flag)
			attributes.attr_set |= options[i].attribute;
	return (int)syscall(SYS_mount_setattr, AT_FDCWD, path, recursive ? AT_RECURSIVE : 0,
			    &attributes, sizeof(attributes));
}

/* Undo the escapes of mountinfo in place: proc(5), blank, tab, newline and backslash. */
static void unescape(char *text)
{
	char *to = text;

	while (*text) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*to++ = (char)((text[1] & 7) << 6 | (text[2] & 7) << 3 | (text[3] & 7));
			text += 4;
		} else {
			*to++ = *text++;
		}
	}
	*to = '\0';
}

/* Read a file of /proc to its end; NULL with errno. */
static char *read_all(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0, room = 0;
	char *data = NULL;
	ssize_t got;

	if (fd < 0)
		return NULL;
	do {
		if (room - length < 4096) {
			char *larger = realloc(data, room = room ? 2 * room : 16384);

			if (!larger)
				break;
			data = larger;
		}
		got = read(fd, data + length, room - length - 1);
		if (got <= 0) {
			close(fd);
			data[length] = '\0';
			return data;
		}
		length += (size_t)got;
	} while (true);
	close(fd);
	free(data);
	errno = ENOMEM;
	return NULL;
}

struct mounted {
	const char *point;
	unsigned long kept;
};

static unsigned long kept_flags(char *words)
{
	unsigned long kept = 0;
	char *rest = NULL;

	for (char *word = strtok_r(words, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
		for (size_t i = 0; i < ARRAY_SIZE(options); i++)
			if (!strcmp(word, options[i].word))
				kept |= options[i].flag;
	return kept;
}

static bool is_below(const char *point, const char *top)
{
	size_t length = strlen(top);

	if (length && top[length - 1] == '/')
		length--;
	return !strcmp(point, top) || (!strncmp(point, top, length) && point[length] == '/');
}

/* Fill *list* with the mounts at and below *top*, each point once; return how many, or -1. */
static int mounts_below(char *table, const char *top, struct mounted **list)
{
	size_t count = 0;
	char *lines = NULL;

	*list = NULL;
	for (char *line = strtok_r(table, "\n", &lines); line; line = strtok_r(NULL, "\n", &lines)) {
		char *rest = NULL;
		char *field[6] = {NULL};
		struct mounted *larger;
		size_t at = 0;

		for (size_t i = 0; i < ARRAY_SIZE(field); i++)
			field[i] = strtok_r(i ? NULL : line, " ", &rest);
		if (!field[5])
			continue;
		unescape(field[4]);
		if (!is_below(field[4], top))
			continue;
		/* Of several on one point the last one is on top. */
		while (at < count && strcmp((*list)[at].point, field[4]))
			at++;
		if (at == count) {
			larger = realloc(*list, ++count * sizeof(**list));
			if (!larger)
				return -1;
			*list = larger;
		}
		(*list)[at] = (struct mounted){field[4], kept_flags(field[5])};
	}
	return (int)count;
}

/*
 * Linux before 5.12 has no mount_setattr: every mount of the tree is remounted by itself, and each
 * keeps the flags that it already has.
 */
static int remount_each(const char *path, unsigned long flags)
{
	char *top = realpath(path, NULL);
	char *table = read_all("/proc/self/mountinfo");
	struct mounted *list = NULL;
	int count = top && table ? mounts_below(table, top, &list) : -1;
	bool found = false;
	int failed = count < 0 ? -1 : 0;

	for (int i = 0; i < count; i++)
		found |= !strcmp(list[i].point, top);
	if (!failed && !found) {
		/*
		 * Somebody who can write to the directory above has renamed the mount point: flags
		 * that fall on nothing must not pass for set.
		 */
		errno = EINVAL;
		failed = -1;
	}
	for (int i = 0; i < count && !failed; i++)
		failed = mount("none", list[i].point, NULL,
			       MS_REMOUNT | MS_BIND | flags | list[i].kept, NULL);
	free(list);
	free(table);
	free(top);
	return failed;
}

/* Add MS_RDONLY, MS_NOSUID, MS_NODEV or MS_NOEXEC to the mount at *path*, or to its whole tree. */
int mount_flags(const char *path, unsigned long flags, bool recursive)
{
	if (may_set_attributes) {
		if (!set_attributes(path, flags, recursive))
			return 0;
		if (errno != ENOSYS)
			return -1;
	}
	return remount_each(path, flags);
}

/* ---- mounts ---- */

/* Bind *source* at *target* beneath *root*, then restrict the new mount by *flags*. */
int mount_bind(const char *source, int root, const char *target, unsigned long flags,
	       bool recursive, struct failure *failure)
{
	struct stat about;
	bool directory = !stat(source, &about) && S_ISDIR(about.st_mode);
	int fd = target_make(root, target, directory);
	char path[FD_PATH];

	if (fd < 0)
		return fail(failure, errno, target, NULL);
	if (mount(source, fd_path(fd, path), NULL, MS_BIND | (recursive ? MS_REC : 0), NULL)) {
		close_failed(fd);
		return fail(failure, errno, source, NULL);
	}
	close(fd);
	if (!flags)
		return 0;
	/* The descriptor names the covered directory: the new mount is reached by name. */
	fd = target_open(root, target);
	if (fd < 0)
		return fail(failure, errno, target, NULL);
	if (mount_flags(fd_path(fd, path), flags, recursive)) {
		close_failed(fd);
		return fail(failure, errno, target, NULL);
	}
	close(fd);
	return 0;
}

/* Mount a new file system at *target* beneath *root*. */
int mount_new(const char *source, int root, const char *target, const char *type,
	      unsigned long flags, const char *data, struct failure *failure)
{
	int fd = target_make(root, target, true);
	char path[FD_PATH];

	if (fd < 0)
		return fail(failure, errno, target, NULL);
	if (mount(source, fd_path(fd, path), type, flags, data)) {
		close_failed(fd);
		return fail(failure, errno, target, NULL);
	}
	close(fd);
	return 0;
}
