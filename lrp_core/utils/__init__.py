"""What several packages need.

Which file answers what:

- :mod:`.devices`: where does a network compute?
- :mod:`.draws`: what is drawn at random for an image?
- :mod:`.errors`: how is a wrong choice refused?
- :mod:`.files`: how is a file written whole or not at all?
- :mod:`.sites`: how are sums over images taken where the images lie at several sites?
- :mod:`.torchvision`: how does torchvision import beside a CPU build of torch?
"""
