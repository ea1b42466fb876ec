# A Debian with nginx that was made elsewhere by debootstrap comes in one archive, needs nothing else
# of this host, and serves its rendered page.

install_stockade
check "the archive needs nothing" sh -c '! stockade import --dry-run /guest/hello.tar.zst | grep needs'
started=$SECONDS
check "import" stockade import /guest/hello.tar.zst
echo "#    imported in $((SECONDS - started)) s"
check "apply" stockade apply

page() {
    stockade exec hello -- bash -c \
        'exec 3<>/dev/tcp/127.0.0.1/8080 && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' | tail -1
}
shows() { [ "$(page)" = "$1" ]; }
check "its page" within 60 shows "hello from hello"
check_same "on Debian" trixie "$(stockade exec hello -- sh -c '. /etc/os-release; echo $VERSION_CODENAME')"
check_same "whose set-id bits are there" 4755 "$(stockade exec hello -- stat -c %a /usr/bin/su)"
check "the layers are as they were made" stockade template verify
check_same "empty plan" "No changes." "$(stockade plan | tail -1)"
